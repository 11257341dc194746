"""Tic-tac-toe by the functions that train language models: a policy learns never to lose against the perfect player.

A board is a prompt, the rest of the game is a response, a move is a token, and the result is the reward of the whole response: a
loss -1, a draw 0, a win 1. As with language, K responses to each prompt are sampled, `rloo_advantages` compares each with its
siblings, and `clipped_policy_loss` moves the policy. At the end every game is played out, not sampled.

    python examples/tic_tac_toe.py --seeds 5
"""

from __future__ import annotations

import argparse
from functools import cache
from random import Random

import torch
from torch import Tensor, nn

from charter.training.advantages import rloo_advantages
from charter.training.losses import clipped_policy_loss

Board = tuple[int, ...]  # 9 squares: 1 is whose turn it is, -1 the other player, 0 free
LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
EMPTY: Board = (0,) * 9
ENTROPY = 0.02


@cache
def after(board: Board, move: int) -> Board:
    """The board after a move, as the other player sees it."""
    return tuple(-1 if i == move else -square for i, square in enumerate(board))


@cache
def has_lost(board: Board) -> bool:
    return any(all(board[i] == -1 for i in line) for line in LINES)


@cache
def moves(board: Board) -> list[int]:
    return [] if has_lost(board) else [i for i in range(9) if board[i] == 0]


@cache
def value(board: Board) -> int:
    """What the player to move can enforce: 1 a win, 0 a draw, -1 no more than a loss."""
    return max((-value(after(board, move)) for move in moves(board)), default=-1 if has_lost(board) else 0)


@cache
def perfect_moves(board: Board) -> list[int]:
    """Every move that keeps the value of the board."""
    return [move for move in moves(board) if -value(after(board, move)) == value(board)]


@cache
def boards_to_save(board: Board = EMPTY) -> frozenset[Board]:
    """The boards that can follow on which the player to move need not lose: the prompts."""
    here = frozenset([board] if moves(board) and value(board) >= 0 else [])
    return here.union(*(boards_to_save(after(board, move)) for move in moves(board)))


class Policy(nn.Module):
    """Log-probabilities of the 9 moves, (N, 9), of boards (N, 9); an occupied square has none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(18, 256), nn.ReLU(), nn.Linear(256, 9))

    def forward(self, boards: Tensor) -> Tensor:
        logits = self.layers(torch.cat([boards == 1, boards == -1], dim=-1).float())
        return torch.log_softmax(logits.masked_fill(boards != 0, -1e9), dim=-1)


@torch.no_grad()
def play(policy: Policy, prompts: list[Board], rng: Random) -> tuple[Tensor, ...]:
    """A game from each of B boards: boards (B, 5, 9) before each move, moves and mask (B, 5), results (B,)."""
    now, n = list(prompts), len(prompts)
    boards, played = torch.zeros(n, 5, 9), torch.zeros(n, 5, dtype=torch.long)
    mask, results = torch.zeros(n, 5, dtype=torch.bool), torch.zeros(n)
    running = list(range(n))
    for t in range(5):
        boards[running, t] = torch.tensor([now[i] for i in running], dtype=torch.float)
        mask[running, t] = True
        played[running, t] = torch.multinomial(policy(boards[running, t]).exp(), 1).squeeze(1)
        for i in running:
            now[i] = after(now[i], int(played[i, t]))  # as the perfect player sees it
            results[i] = float(has_lost(now[i]))
            if moves(now[i]):
                now[i] = after(now[i], rng.choice(perfect_moves(now[i])))
                results[i] = -float(has_lost(now[i]))
        running = [i for i in running if moves(now[i])]
        if not running:
            break
    return boards, played, mask, results


def train(seed: int, steps: int, n: int = 64, k: int = 16, epochs: int = 4) -> tuple[Policy, list[float]]:
    """The policy, and the share of the sampled games that it lost at each step, ``k`` games from each of ``n`` boards."""
    torch.manual_seed(seed)
    policy, rng, curve = Policy(), Random(seed), []
    prompts = sorted(boards_to_save())
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for _ in range(steps):
        boards, played, mask, results = play(policy, [board for board in rng.sample(prompts, n) for _ in range(k)], rng)
        advantages = rloo_advantages(results.view(n, k)).view(-1, 1).expand(mask.shape)
        with torch.no_grad():
            rollout_logprobs = policy(boards).gather(2, played[..., None]).squeeze(2)
        for _ in range(epochs):
            all_logprobs = policy(boards)
            logprobs = all_logprobs.gather(2, played[..., None]).squeeze(2)
            loss, _ = clipped_policy_loss(logprobs, rollout_logprobs, advantages, mask, clip_coef=0.2)
            entropy = -(all_logprobs.exp() * all_logprobs).sum(dim=2)[mask].mean()
            optimizer.zero_grad()
            (loss - ENTROPY * entropy).backward()  # without the bonus a policy that is sure of a wrong move never tries another
            optimizer.step()
        schedule.step()
        curve.append(float((results < 0).float().mean()))
    return policy, curve


@torch.no_grad()
def play_out(policy: Policy, replies, board: Board = EMPTY, ours: bool = True) -> tuple[int, int, int]:
    """(won, drawn, lost) of all games in which the policy takes its likeliest move and the other player any of
    ``replies(board)``."""
    if not moves(board):
        lost = has_lost(board)
        return (int(lost and not ours), int(not lost), int(lost and ours))
    chosen = [int(policy(torch.tensor([board], dtype=torch.float)).argmax())] if ours else replies(board)
    counts = [play_out(policy, replies, after(board, move), not ours) for move in chosen]
    won, drawn, lost = map(sum, zip(*counts, strict=True))
    return won, drawn, lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    for seed in range(args.seeds):
        policy, curve = train(seed, args.steps)
        for name, replies in (("the perfect player", perfect_moves), ("any player", moves)):
            won, drawn, lost = (
                sum(pair) for pair in zip(play_out(policy, replies), play_out(policy, replies, ours=False), strict=True)
            )
            print(f"seed {seed}: all games against {name}: {won} won, {drawn} drawn, {lost} lost", flush=True)
        print(f"seed {seed}: share of games lost in training, first and last step: {curve[0]:.2f}, {curve[-1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
