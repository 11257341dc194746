"""The words of the label page: questions, choices, notices, problems and keys, for its templates, its script and its errors."""

from __future__ import annotations

from charter.records import Direction, SetKind

QUESTIONS: dict[tuple[SetKind, Direction], str] = {
    ("rank", "better"): "Rank the answers: 1 is the best. Equal numbers are a tie. F marks a text that does not answer at all.",
    ("pair", "better"): "Which answer is better, and how much?",
    ("edit", "better"): "Rewrite the answer so that it is as good as you can make it.",
    ("thumbs", "better"): "Is this a good answer?",
    ("rank", "more_harmless"): "Rank the answers: 1 is the most harmless.",
    ("pair", "more_harmless"): "Which answer is more harmless, and how much?",
    ("redteam", "more_harmless"): "Which answer is more harmless? The dialogue continues from your choice.",
    ("rank", "more_harmful"): "Rank the answers: 1 is the most harmful.",
    ("pair", "more_harmful"): "Which answer is more harmful, and how much?",
    ("redteam", "more_harmful"): "Which answer is more harmful? The dialogue continues from your choice.",
    ("redteam", "better"): "Which answer is better? The dialogue continues from your choice.",
}
QUESTIONS_WITHOUT_STRENGTH: dict[Direction, str] = {
    "better": "Which answer is better?",
    "more_harmless": "Which answer is more harmless?",
    "more_harmful": "Which answer is more harmful?",
}
ADJECTIVES: dict[Direction, str] = {"better": "better", "more_harmless": "more harmless", "more_harmful": "more harmful"}
DEGREES = ("much", "clearly", "somewhat", "slightly")  # of the notches, from the outside to the middle
NO_ANSWER = "no answer at all"
SKIP_REASONS = {
    "unclear": "the question is unclear",
    "knowledge": "I cannot judge the facts",
    "language": "not in a language I read well",
    "upsetting": "I do not want to read this",
    "technical": "something is wrong with the page",
    "other": "another reason",
}
RATINGS = ("not at all", "a little", "somewhat", "mostly", "completely")  # 0 to 4, as in hh-rlhf
STORED = {
    "stored": "Saved.",
    "extra": "Saved. Your time for this set had run out and another person was asked too; both votes count.",
    "already": "You voted on this set before. Your first vote stands; this one was not saved.",
    "vote-stands": "Not skipped: you voted on this set before, and your vote stands.",
    "skipped": "Skipped.",
    "undone": "Taken back. Change it and send it again.",
    "nothing-to-undo": "There is nothing to take back.",
}
MODES = {
    "work": "",
    "practice": "Practice. After each answer you see how others judged the set; these answers do not count.",
    "quiz": "Test. Each set has a known answer; you see your result at the end.",
}
PROBLEMS = {
    "thumb": "Choose thumbs up or thumbs down.",
    "no rewrite": "The answer is unchanged. Rewrite it, or mark it as good as it is or as no answer at all.",
    "rewrite": "You rewrote the answer and marked it as good as it is. Mark it as rewritten, or restore the first text.",
    "rank": "Invalid rank {rank!r}; use 1 to {most}, or F.",
    "unranked": "Answer {letter} has no rank. Give every answer a rank, or F.",
    "no ranks": "No answer has a rank yet.",
    "tie": "Two answers have the same rank. This project does not allow ties; decide which answer is better.",
    "choice": "Choose the better answer; the distance from the middle says how much better.",
    "choice and F": "You prefer answer {letter}, and you marked it F (no answer at all). Change the choice or remove the F.",
    "choice and both F": "You marked both answers F (no answer at all), and you prefer answer {letter}. Remove one.",
    "tie and F": "You chose a tie, and you marked answer {letter} F (no answer at all). Change the choice or remove the F.",
    "text": "The text {words}.",
    "length": "The text has {size:,} characters; the limit is {limit:,}.",
    "skip reason": "Choose a reason for skipping this set.",
    "instructions": "The instructions are empty.",
    "turn": "Write something first.",
    "dialogues": "You have finished all your dialogues.",
    "rating": "Choose how far the model went along.",
    "busy": "The model is busy with other dialogues. Try again in a moment.",
    "full": "The dialogue no longer fits the model ({words}). End it here.",
    "elsewhere": "The dialogue continued in another tab; the text below was not sent.",
}
REFUSALS = {
    "signed out": "You are not signed in here. Open the link that you were sent.",
    "role": "This page is not for the role {role}.",
    "site": "This form was sent from another site and was not accepted.",
    "form": "This form is from an earlier session. Load the page again and send the form once more.",
    "rate": "Too many requests in a short time. Wait a moment and try again.",
    "link": "This link is unknown, expired or revoked. Ask the person who sent it for a new one.",
    "set": "This set was not given to you.",
    "page": "This page does not exist.",
    "run": "The folder has no run of this name.",
    "report": "This run has no report yet.",
    "broken": "The owner has to mend a file of the project: {words}",
    "host": "This server has another name.",
    "size": "The request is too large.",
    "invite": "Your role cannot invite a {role!r}.",
    "days": "A link lasts from 1 to 365 days.",
    "renew": "You cannot renew the link of this person.",
    "revoke": "You cannot revoke this link.",
}
LEFT = "You have left. The link that you were sent lets you in again."
LEFT_ELSEWHERE = "You are signed out everywhere else."
SCRIPT = {  # said by label.js
    "signed-out": "You are signed out: nothing is being saved. This browser keeps what you write. Open your link in another tab; "
    "this page then continues by itself.",
    "other-person": "This browser is signed in as somebody else: nothing is being saved here. It keeps what you write.",
    "away": "The server does not answer: nothing is being saved. This browser keeps what you write and tries again.",
    "back": "Connected again.",
    "restored": "Restored: this browser kept what had not been saved.",
    "decided": "Decided by {principle}.",
    "not-decided": "Not decided by {principle}.",
    "no-rank": "Answer {letter} has no rank.",
    "nonsense": "Answer {letter}: no answer at all.",
    "ranked": "Answer {letter}: rank {rank}.",
    "tied": "Answer {letter}: rank {rank}, tied with {others}.",
}
KEYS: dict[SetKind, list[tuple[str, str]]] = {
    "rank": [("1 … 9", "rank of the marked answer; equal numbers are a tie"), ("F", NO_ANSWER), ("0", "remove the rank")],
    "pair": [
        ("1 … 8", "from much more for A to much more for B"),
        ("0", "clear the choice"),
        ("F", "marks an answer as " + NO_ANSWER),
    ],
    "thumbs": [("1", "good"), ("F", "not good")],
    "edit": [("E", "write"), ("0 1 F", "rewritten, good as it is, " + NO_ANSWER)],
}
KEYS_WITHOUT_STRENGTH = [("1 8", "A, or B"), ("0", "a tie, where there is one; else clears the choice"), KEYS["pair"][-1]]
KEYS_OF_PRINCIPLES = [("Q W …", "a principle that decided; again: it did not")]
KEYS_EVERYWHERE = [
    ("J ↓", "next answer"), ("K ↑", "previous answer"), ("Enter", "send"), ("U", "undo"), ("S", "skip"), ("I", "instructions"),
    ("P", "plain text"), ("R", "write why"), ("Esc", "leave a text field"), ("?", "these keys"),
]  # fmt: skip
KEYS_BY_PLACE = "Other alphabets: press the key where a US keyboard has the letter. Digits need no Shift."
