"""One causal language model that plays several roles: policy, reference, reward model, value model.

With LoRA all roles share the base weights: the reference is the base with its adapters off, and every other role is an adapter,
with a scalar head if it scores. Without LoRA, for small models, each trained role is its own copy and the unchanged base serves
as reference. Code above calls a role for log-probabilities, scores or values and does not know which of the two it is.

Shapes: R responses, T response positions, N tokens in line, H hidden size (see ``packing``).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from charter.errors import InputError
from charter.models.architectures import first_in_line, hidden_in_line, is_encoder, is_encoder_decoder, row_limit
from charter.models.attention import NAME
from charter.models.formats.adapters import add_adapter, added, merged_weights, put_on, save_adapter, stack_of
from charter.models.formats.precision import DTYPES, RoleParameters, with_scaled_gradient
from charter.models.formats.quantize import STACK, dense_copy, is_quantized, size_of
from charter.models.formats.sharded import Sharded, put, whole_tensor
from charter.models.heads import VALUE_HEAD, Scorers, ScoreScale, ValueHead, writing_with
from charter.models.llama.train import hidden_states
from charter.models.llama.weights import FUSED_BYTES, is_llama_like, weights_of
from charter.models.load import save_model, vocabulary_of
from charter.models.logprobs import check_logits, chosen_logprobs, is_plain_projection, logits_from_hidden
from charter.models.memory import checkpoint_layers
from charter.models.packing import LAYOUT, LineLayout, Packed, Tokens, pack
from charter.models.sampling.generate import context_length
from charter.recipe.settings import LoRASettings
from charter.run.files import read_json, write_json
from charter.run.hashes import derive_seed
from charter.run.team import team

if TYPE_CHECKING:
    from charter.models.sampling.vllm_engine import VLLMEngine

T = TypeVar("T")

REFERENCE = "reference"
REWARD_CARD, REWARD_WEIGHTS = "reward_model.json", "reward_model.safetensors"


class PolicyPass(NamedTuple):
    """What a writing role computes at each response token, (R, T), 0 outside the mask."""

    logprobs: Tensor
    """Nats."""
    entropies: Tensor
    """Nats, of the whole vocabulary; empty unless asked for."""
    values: Tensor
    """Of its value head, at the state before the token, reward units; empty without a head."""


class Trunk:
    """The model, its tokenizer, and the roles it plays."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        lora: LoRASettings | None = None,
        precision: str = "float32",
        seed: int = 0,
        path: str = "",
        parallel: str = "ddp",
        under: Sequence[Path] = (),
        gradient_checkpointing: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """``parallel``: how several processes of a run divide the training (``Recipe.parallel``)."""
        self.model, self.tokenizer, self.lora, self.seed = model, tokenizer, lora, seed
        self.device = next(model.parameters()).device
        self.precision, self.path, self.dtype = precision, path, DTYPES[precision]
        self.gradient_checkpointing, self.say = gradient_checkpointing, say
        self.divided = parallel == "fsdp" and team().size > 1
        self.engines: list[Any] | None = [] if parallel == "deepspeed" and team().size > 1 else None
        """Engines of DeepSpeed, one for each optimizer."""
        self._divided: dict[str, Sharded] = {}
        self.copies: dict[str, Any] = {}
        self.heads: dict[str, nn.Linear] = {}
        self.value_heads: dict[str, ValueHead] = {}
        self.projections: dict[str, nn.Linear] = {}
        """Vocabulary projections of roles that do not write with the model's."""
        self.scalers: dict[str, torch.amp.GradScaler] = {}
        self.adapters: Any = None
        self.engine: VLLMEngine | None = None
        """Samples rollouts in place of the model itself."""
        self.playing: str | None = None
        """The role whose adapter is on."""
        self.stored_head: Tensor | None = None
        """Weights (1, H) of the reward head that the model came with: heads start from it and not from zero."""
        self.n_parameters: int = sum(size_of(parameter) for parameter in model.parameters())
        self.under = tuple(f"under{number}" for number in range(len(under)))
        """Adapters that are part of the base: trained earlier on its 4-bit weights, on in every role."""
        for name, folder in zip(self.under, under, strict=True):
            self.adapters = put_on(model if self.adapters is None else self.adapters, folder, name)
        if self.under:
            self.adapters.base_model.set_adapter(list(self.under))
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        if gradient_checkpointing:
            checkpoint_layers(model, self._again)

    # -- roles ---------------------------------------------------------------------------------------------------------

    def add_role(self, name: str, *, head: bool = False, start_from: str | None = None, lora: LoRASettings | None = None) -> None:
        """Add a trainable role that starts as the base (or as another role). A head starts as ``stored_head``, or at zero, where
        every score and value is 0 before the first update. ``lora``: of an adapter that was trained with other settings."""
        torch.manual_seed(derive_seed(self.seed, "role", name))
        if self.precision == "float16":
            self.scalers[name] = torch.amp.GradScaler(self.device.type)
        if self.lora is None:
            if is_quantized(self.model):
                raise InputError("weights of 4 bits cannot be trained; set lora", file=self.path or None)
            if (start_from or REFERENCE) in self._divided:
                self.copies[name] = self._divided[start_from or REFERENCE].undivided()
            else:
                self.copies[name] = copy.deepcopy(self.copies[start_from] if start_from else self.model)
            self._divided.pop(name, None)
            for parameter in self.copies[name].parameters():
                parameter.requires_grad_(True)
            if self.gradient_checkpointing:
                checkpoint_layers(self.copies[name], self._again)
        else:
            self.adapters = add_adapter(self.model, self.adapters, name, lora or self.lora, start_from)
        if head:
            hidden = self.model.config.get_text_config().hidden_size
            self.heads[name] = nn.Linear(hidden, 1, bias=False, device=self.device)
            if start_from and start_from in self.heads:
                self.heads[name].load_state_dict(self.heads[start_from].state_dict())
            elif self.stored_head is not None:
                put(self.heads[name].weight, self.stored_head)
            else:
                nn.init.zeros_(self.heads[name].weight)
        if self.say is not None and self.lora is not None:
            n = sum(parameter.numel() for parameter in self.parameters(name).values())
            self.say(f"  {name}: LoRA trains {n:,} of {self.n_parameters:,} parameters ({self.trainable_share(name):.2%})")

    def add_value_head(self, role: str, gradient: float) -> None:
        """Give a role that writes a value head on its own states. ``gradient``: what the loss of the values weighs in the layers
        below the head; at 0 they learn nothing from it."""
        torch.manual_seed(derive_seed(self.seed, "value head", role))
        self.value_heads[role] = ValueHead(self.model.config.get_text_config().hidden_size, gradient).to(self.device)

    def parameters(self, role: str) -> RoleParameters:
        """The trainable parameters of a role by name, its heads included."""
        if self.divided:
            self._divide(role)
        if self.lora is None:
            named = dict(self.copies[role].named_parameters())
            if role in self.heads and not is_encoder(self.model):  # the output projection of a scorer never gets a gradient
                output = self.copies[role].get_output_embeddings().weight
                tied = output is self.copies[role].get_input_embeddings().weight
                named = {key: value for key, value in named.items() if tied or value is not output}
        else:
            named = {key: value for key, value in self.adapters.named_parameters() if f".{role}." in key}
        if role in self.heads:
            named["head.weight"] = self.heads[role].weight
        if role in self.value_heads:
            named |= {f"{VALUE_HEAD}{key}": value for key, value in self.value_heads[role].named_parameters()}
        parameters = RoleParameters(named)
        parameters.scaler, parameters.engines = self.scalers.get(role), self.engines
        return parameters

    def close(self) -> None:
        """End its training: close the engines that refer to its weights."""
        while self.engines:
            self.engines.pop().close()

    def trainable_share(self, role: str) -> float:
        """Trained parameters of a role over the parameters of the base."""
        trained = sum(p.numel() for p in self.parameters(role).values() if p.requires_grad)
        return trained / self.n_parameters

    @contextlib.contextmanager
    def as_role(self, role: str) -> Iterator[Any]:
        """The causal LM in the given role; gradients flow to the parameters of that role only. Divided weights are whole on every
        process inside, and no gradient flows: training needs ``through``."""
        if self.divided:
            with self._divide(role).whole() as model:
                yield model
        elif self.lora is None:
            with writing_with(self.copies.get(role, self.model), self.projections.get(role)) as model:
                yield model
        elif self.adapters is None or (role == REFERENCE and not self.under):
            with self.adapters.disable_adapter() if self.adapters is not None else contextlib.nullcontext():
                yield self.model
            self._thaw()
        else:
            self._play(role)
            with writing_with(self.model, self.projections.get(role)) as model:
                yield model

    def plain_weights(self, role: str) -> Iterator[tuple[str, Tensor]]:
        """The weights of a role under the names of its model without adapters, which are added in, one layer at a time."""
        with self.as_role(role) as model:
            off = self.adapters is None or role == REFERENCE
            yield from merged_weights(model, () if off else (role,))

    def through(self, role: str, compute: Callable[[Any], T]) -> T:
        """``compute(model)`` with the causal LM in the given role. All passes with a gradient go through here."""
        if self.divided:
            result: T = self._divide(role)(compute)
            return result
        with self.as_role(role) as model:
            return compute(model)

    def _divide(self, role: str) -> Sharded:
        """The weights of a role, divided among the processes from now on."""
        role = role if role in self.copies else REFERENCE
        if role not in self._divided:
            assert self.packs is not None  # its trial needs whole weights
            self._divided[role] = Sharded(self.copies.get(role, self.model))
        return self._divided[role]

    def turns(self, parts: Sequence[T], costs: Sequence[float], *roles: str) -> Iterator[T]:
        """The parts of this process, each for a pass of ``roles`` in this order, with gradients if these are on. With divided
        weights every process makes as many passes: a process with fewer parts adds passes of weight 0."""
        parts_here = team().share(parts, costs)
        yield from parts_here
        if self.divided:
            for _ in range(max(map(len, team().deal(costs))) - len(parts_here)):
                packed = self.pack([Tokens([self.tokenizer.eos_token_id], [self.tokenizer.eos_token_id])])
                outputs = [self.scores(role, packed) if role in self.heads else self.logprobs(role, packed)[0] for role in roles]
                if torch.is_grad_enabled():
                    torch.autograd.backward(torch.stack([output.sum() for output in outputs]).sum() * 0.0)

    def _play(self, role: str) -> None:
        """Switch on the adapter of a role, and those under all roles."""
        self.adapters.base_model.set_adapter([*self.under, *([] if role == REFERENCE else [role])])
        self.playing = role
        self._thaw()

    def _thaw(self) -> None:
        """Unfreeze all adapters: peft freezes the ones that are off, and a graph that waits for its backward pass needs them."""
        if self.adapters is not None:
            for key, parameter in self.adapters.named_parameters():
                if "lora_" in key:
                    parameter.requires_grad_(not any(f".{name}." in key for name in self.under))

    def _again(self) -> contextlib.AbstractContextManager[None]:
        """The context of this moment, for a layer that is computed again: the layout of its line and the adapters of its role."""
        return self._as_it_was(LAYOUT.get(), self.playing)

    @contextlib.contextmanager
    def _as_it_was(self, layout: LineLayout | None, role: str | None) -> Iterator[None]:
        token = LAYOUT.set(layout)
        try:
            if role is not None and role != self.playing:
                self._play(role)
            yield
        finally:
            LAYOUT.reset(token)

    # -- what a role computes ------------------------------------------------------------------------------------------

    def pack(self, rows: Sequence[Tokens]) -> Packed:
        """Rows as one line for this trunk; equal prompts are read once if that is exact for its model."""
        return pack(rows, self.device, share=self.packs)

    @property
    def room(self) -> int | None:
        """Most tokens of a row, prompt and response together; None if the model names no limit."""
        return row_limit(self.model) if is_encoder(self.model) else context_length(self.model)

    @cached_property
    def vocabulary(self) -> int | None:
        """Number of ids of the tokenizer, if the model has more rows (filled up to a multiple of 64, say): no further id is
        sampled or has a probability. None if the two numbers agree."""
        if is_encoder(self.model):
            return None
        rows = int(self.model.get_output_embeddings().weight.shape[0])
        known = vocabulary_of(self.tokenizer, rows)
        return known if known < rows else None

    @cached_property
    def packs(self) -> bool:
        """Whether the model computes for a line of packed rows what it computes for each row alone; decided by a trial."""
        config = self.model.config.get_text_config()
        windows = getattr(config, "layer_types", None) or []
        if is_encoder_decoder(self.model) or is_encoder(self.model):
            return False
        if self.model.config._attn_implementation != NAME or any(kind != "full_attention" for kind in windows):
            return False
        if getattr(config, "sliding_window", None) is not None and not windows:
            return False
        rows = [Tokens([3, 5, 7], [2, 4]), Tokens([3, 5, 7], [6]), Tokens([8], [9, 1, 2])]
        packed, alone = pack(rows, self.device), pack(rows, self.device, share=False)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            line = self._line(self.model, packed, packed=True)[packed.before[packed.mask]]
            rows_alone = self._line(self.model, alone, packed=False)[alone.before[alone.mask]]
        return bool(torch.allclose(line, rows_alone, rtol=1e-3, atol=1e-3 * float(rows_alone.abs().max())))

    @cached_property
    def fuses(self) -> bool:
        """Whether the written-out pass replaces the model's own code: Llama-like models on a CPU, with room for a second copy of
        the weights."""
        size = self.n_parameters * self.dtype.itemsize
        return not self.divided and self.device.type == "cpu" and is_llama_like(self.model) and self.packs and size <= FUSED_BYTES

    def hidden(self, model: Any, packed: Packed, rows: Tensor) -> Tensor:
        """Last hidden states (n, H), float32, at the places ``rows`` (n,) of the line."""
        if self.fuses:
            return hidden_states(model, packed, rows, self.dtype, again=self.gradient_checkpointing)
        with self.autocast():
            return self._line(model, packed, packed=self.packs)[rows]

    def _line(self, model: Any, batch: Packed, *, packed: bool) -> Tensor:
        if is_encoder_decoder(model):
            return hidden_in_line(model, batch).float()
        if is_encoder(model):
            return first_in_line(model, batch, self.tokenizer.cls_token_id).float()
        if packed:
            token = LAYOUT.set(batch.layout)
            try:
                output = model.base_model(
                    input_ids=batch.ids.unsqueeze(0), position_ids=batch.positions.unsqueeze(0), use_cache=False
                )
            finally:
                LAYOUT.reset(token)
            hidden: Tensor = output.last_hidden_state[0]
        else:
            # Padding is on the right and a causal model never looks right, so no mask is given.
            output = model.base_model(input_ids=batch.ids[batch.layout.responses.slots], use_cache=False)
            hidden = output.last_hidden_state.flatten(0, 1)[batch.layout.back]
        return hidden.float()

    def autocast(self) -> Any:
        """A context with matrix products in the precision of the trunk."""
        enabled = self.precision != "float32"
        return torch.autocast(self.device.type, dtype=self.dtype if enabled else None, enabled=enabled, cache_enabled=False)

    def logprobs(
        self, role: str, packed: Packed, *, temperature: float = 1.0, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (R, T), nats, of the response tokens, 0 outside the mask; and entropies likewise."""
        outputs = self.outputs(role, packed, temperature=temperature, entropy=entropy)
        return outputs.logprobs, outputs.entropies if entropy else None

    def outputs(self, role: str, packed: Packed, *, temperature: float = 1.0, entropy: bool = False) -> PolicyPass:
        """All that a role computes of the response tokens in one pass.

        Logits are computed only where a response token follows, and normalised in float32. ``temperature`` must
        equal that of sampling, or the ratio of the first update would not be 1.
        """
        place = packed.mask.nonzero(as_tuple=True)
        targets = packed.targets[packed.mask]

        def compute(model: Any) -> tuple[Tensor | None, ...]:
            hidden = self.hidden(model, packed, packed.before[packed.mask])
            values = self.value_heads[role](hidden) if role in self.value_heads else None
            return *self._chosen_logprobs(model, hidden, targets, temperature, entropy), values

        def spread(numbers: Tensor | None) -> Tensor:
            if numbers is None:
                return torch.empty(0, device=packed.mask.device)
            zeros = torch.zeros(packed.mask.shape, device=numbers.device)
            return zeros.index_put(place, with_scaled_gradient(self.scalers.get(role), numbers))

        return PolicyPass(*map(spread, self.through(role, compute)))

    def _chosen_logprobs(
        self, model: Any, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        if is_plain_projection(model):
            weight = model.get_output_embeddings().weight
            cast = weights_of(model, self.dtype).lm_head.weight if self.fuses else weight.detach().to(self.dtype)
            if self.vocabulary is not None:
                weight, cast = weight[: self.vocabulary], cast[: self.vocabulary]
            return chosen_logprobs(hidden, weight, cast, targets, temperature=temperature, entropy=entropy)
        with self.autocast():
            logits = logits_from_hidden(model, hidden)
        log_softmax = torch.log_softmax(logits[:, : self.vocabulary].float() / temperature, dim=-1)
        chosen = log_softmax.gather(1, targets.unsqueeze(1)).squeeze(1)
        return chosen, -(log_softmax.exp() * log_softmax).sum(dim=-1) if entropy else None

    def values(self, role: str, packed: Packed) -> Tensor:
        """The role's head at the state *before* each response token: (R, T), 0 outside the mask."""
        hidden = self.through(role, lambda model: self.hidden(model, packed, packed.before[packed.mask]))
        values = with_scaled_gradient(self.scalers.get(role), self.heads[role](hidden).squeeze(-1))
        zeros = torch.zeros(packed.mask.shape, device=hidden.device)
        return zeros.index_put(packed.mask.nonzero(as_tuple=True), values)

    def scores(self, role: str, packed: Packed) -> Tensor:
        """The role's head at the last token of each row: (R,). The place is computed from lengths, never from ids."""
        hidden = self.through(role, lambda model: self.hidden(model, packed, packed.last))
        return with_scaled_gradient(self.scalers.get(role), self.heads[role](hidden).squeeze(-1))

    # -- on disk ---------------------------------------------------------------------------------------------------------

    def save_language_model(self, role: str, folder: Path) -> None:
        """Write the role as a plain Hugging Face folder. With LoRA the adapter is merged into a copy of the base, and also saved
        in `adapter` beside it, in peft's form, unless the role has a projection too. 4-bit weights are written out in the
        precision of the run. Of several processes the main one writes."""
        if self.divided:
            whole = self._divide(role).undivided()
            if team().is_main:
                save_model(whole, self.tokenizer, folder)
            return
        if not team().is_main:
            return
        if self.lora is not None and role not in self.projections:
            save_adapter(self.adapters, role, self.tokenizer, folder.with_name("adapter"), self.path)
        with self.as_role(role) as model:
            if is_quantized(self.model):
                save_model(dense_copy(model, self.dtype), self.tokenizer, folder, extra={STACK: {"quantization": "nf4"}})
                return
            if self.lora is not None:
                model = added(copy.deepcopy(self.adapters), role)
            save_model(model, self.tokenizer, folder)

    def save_scorers(self, scorers: Scorers, folder: Path) -> None:
        """Write a reward model: weights, heads and normalisation, with the tokenizer and its template."""
        from safetensors.torch import save_file

        tensors = {
            f"{role}/{key}": whole_tensor(value).contiguous().clone()
            for role in scorers.roles
            for key, value in self.parameters(role).items()
        }
        if not team().is_main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / REWARD_WEIGHTS)
        self.tokenizer.save_pretrained(folder)
        self.model.config.save_pretrained(folder)
        members = [{"role": role, "mean": s.mean, "std": s.std} for role, s in zip(scorers.roles, scorers.scales, strict=True)]
        adapter = {"lora": self.lora.model_dump(), "base": self.path} if self.lora else {"lora": None}
        write_json(folder / REWARD_CARD, {**adapter, "members": members, "combine": scorers.combine})

    def load_scorers(self, folder: Path) -> Scorers:
        """Put a saved reward model on this trunk. InputError if it is incomplete or does not fit."""
        from safetensors.torch import load_file

        card = read_json(folder / REWARD_CARD)
        file = folder / REWARD_WEIGHTS
        if card is None or not file.exists():
            raise InputError(f"not a reward model: {REWARD_CARD} or {REWARD_WEIGHTS} is missing", file=folder)
        if not isinstance(card, dict) or not isinstance(card.get("members"), list):
            raise InputError("the list of members is missing; train the reward model again", file=folder / REWARD_CARD)
        if (card["lora"] is None) != (self.lora is None):
            raise InputError("the reward model and this trunk differ in lora; use the same setting for both", file=folder)
        tensors = load_file(file)
        roles = [member["role"] for member in card["members"]]
        for role in roles:
            if f"{role}/head.weight" not in tensors:
                raise InputError("the reward head is missing; train the reward model again", file=file)
            if role not in self.copies and (self.adapters is None or role not in self.adapters.peft_config):
                # Its own scale: the policy's adapter on this trunk may have another.
                self.add_role(role, head=True, lora=LoRASettings(**card["lora"]) if card["lora"] else None)
            parameters = self.parameters(role)
            stored = {key.removeprefix(f"{role}/"): value for key, value in tensors.items() if key.startswith(f"{role}/")}
            if stored.keys() != parameters.keys():
                raise InputError("the weights do not fit this trunk; the reward model was trained on another model", file=file)
            for key, value in stored.items():
                put(parameters[key], value)
        scales = [ScoreScale(member["mean"], member["std"]) for member in card["members"]]
        return Scorers(tuple(roles), tuple(scales), card["combine"])


def load_trunk(
    path: str,
    *,
    device: str = "cpu",
    lora: LoRASettings | None = None,
    precision: str = "float32",
    seed: int = 0,
    writes: bool = True,
    parallel: str = "ddp",
    quantization: str | None = None,
    attention: str = "auto",
    gradient_checkpointing: bool = False,
    say: Callable[[str], None] | None = None,
) -> Trunk:
    """The model of a folder as a trunk without roles, which can serve as reference. ``writes``: refuse an encoder, which can only
    be a reward model. ``parallel`` as in ``Trunk``. ``say`` gets a line on each adapter. InputError if the model does not
    load, or a package for ``quantization`` or ``attention`` is missing."""
    from charter.models.load import check_folder, check_vocabulary, load_base, load_tokenizer

    check_folder(path)
    base, under = stack_of(path) if quantization else (path, [])
    model = load_base(base, device, attention=attention, quantization=quantization, precision=precision)
    if writes and is_encoder(model):
        raise InputError("an encoder cannot write; use it as a reward model (reward_model.model) or a classifier", file=path)
    tokenizer = load_tokenizer(path)
    check_vocabulary(model, tokenizer, path)
    check_logits(model, path)
    return Trunk(model, tokenizer, lora=lora, precision=precision, seed=seed, path=path, under=under, parallel=parallel,
                 gradient_checkpointing=gradient_checkpointing, say=say)  # fmt: skip
