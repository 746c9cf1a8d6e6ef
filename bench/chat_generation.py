"""New tokens per second of a chat model writing numbers: batches of 1 to 512 against `generate` of transformers.

SmolLM2-135M in float32 at temperature 1, nothing cut, the same prompts here and there, freely and under the constraint
that only what the filter keeps can be written. There the constraint is a logits processor over the same automaton,
batches are padded on the left and come one after the other; here rows that have finished take up the next prompt. Only
tokens up to the end of an answer count. Small batches write several times their size, the largest once: `samples` in
the table is how many a call writes. PyTorch uses one thread or all, whichever is faster. What is written here is also
compared with transformers writing one prompt after the other, where batches of 1 are measured.
"""

import argparse
import datetime
import json
from collections.abc import Callable
from typing import Any

import measuring
from measuring import Data, Spread, Table

NAME = "chat_generation"
BATCHES = (1, 4, 16, 64, 256, 512)
# Samples of a call are some batches, so that rows are refilled, but not many of the large and slow ones.
FEW, TIMES, MANY = 16, 4, 128
# Rounds at most, of batches of more rows than this; the largest that run once before the clock starts.
_FEWER_ROUNDS = {16: 2, 256: 1}
_WARMED_UP = 64
# New tokens, of so many prompts at most, of the calls that warm up, and find out how many threads are faster.
_FEW_TOKENS, _FEW_PROMPTS = 4, 32
OURS, THEIRS = "here", "transformers"
FREE, CONSTRAINED = "free", "constrained"


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = measuring.parser(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="rows that are written at a time")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each contestant; fewer of large batches")
    parser.add_argument("--most_samples", type=int, default=MANY, help="written in a call, unless a batch is larger")
    parser.add_argument("--kinds", nargs="+", default=[FREE, CONSTRAINED], choices=[FREE, CONSTRAINED])
    parser.add_argument("--more", action="store_true", help="add to what is stored of other batches and kinds")
    options = parser.parse_args(arguments)
    if options.quick:
        options.batches, options.rounds, options.most_samples = [1, 4], 1, 4
    return options


def samples_of(batch: int, most: int) -> int:
    return max(batch, min(max(FEW, TIMES * batch), most))


def measure(options: argparse.Namespace) -> Data:
    from subl_jax.runtime import devices

    devices.prepare()
    import chat_student

    world = chat_student.world_of(prompts=1024)
    model, arrays = chat_student.torch_model().eval(), world.arrays()
    stored = _stored() if options.more else []
    blocks = {(block["batch"], block["kind"]): block for block in stored}
    call, git = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), measuring.machine()["git"]
    for batch in options.batches:
        n = samples_of(batch, options.most_samples)
        rounds = min([options.rounds, *(most for rows, most in _FEWER_ROUNDS.items() if batch > rows)])
        for kind in options.kinds:
            blocks[batch, kind] = {"call": call, "git": git, **_block(world, arrays, model, batch, n, kind, rounds)}
    order = sorted(blocks, key=lambda at: (at[0], [FREE, CONSTRAINED].index(at[1])))
    return {"new_tokens": world.completion_tokens, "blocks": [blocks[at] for at in order]}


def _stored() -> list[Data]:
    data = json.loads((measuring.RESULTS / f"{NAME}.json").read_text())
    there, here = data["machine"]["cpu"], measuring.machine()["cpu"]
    if there != here:
        raise SystemExit(f"--more: what is stored was measured on {there}, and this is {here}; measure all of it")
    return data["blocks"]


def _block(world: Any, arrays: Any, model: Any, batch: int, n: int, kind: str, rounds: int) -> Data:
    import chat_student
    import jax
    import numpy as np

    from subl_jax import specs

    sampling = chat_student.constrained(batch) if kind == CONSTRAINED else world.sampling(rows=batch)
    keys = jax.random.split(jax.random.key(batch), n)

    def write(arrays: Any, keys: jax.Array, values: Any) -> jax.Array:
        return world.holding(arrays).write({}, keys, specs.bind(sampling, values))

    compiled = jax.jit(write).lower(arrays, keys, specs.traced_values(sampling)).compile()
    counts: dict[str, list[int]] = {OURS: [], THEIRS: []}
    kept: dict[str, list[float]] = {OURS: [], THEIRS: []}

    def ours() -> Any:
        return np.asarray(compiled(arrays, keys, specs.traced_values(sampling)))

    if batch <= _WARMED_UP:
        ours()
    given = jax.jit(lambda arrays, keys: world.holding(arrays).prompts_of(keys))(arrays, keys)
    prompts = [[*world.head, *tokens[:length].tolist()] for tokens, length in zip(*map(np.asarray, given), strict=True)]
    theirs = _generator(world, arrays, model, prompts, batch, kind)
    threads = chat_student.faster_threads(lambda: theirs(_FEW_TOKENS))

    seconds: dict[str, list[float]] = {OURS: [], THEIRS: []}
    for _ in range(rounds):
        for name, run in ((OURS, ours), (THEIRS, lambda: theirs(world.completion_tokens))):
            written: list[Any] = []
            seconds[name].append(measuring.timed(lambda run=run, written=written: written.append(run())))
            tokens = written[0][:, 1 + world.prompt_tokens :] if name == OURS else written[0]
            counts[name].append(_real(tokens, arrays["stops"]))
            kept[name].append(_kept(world, tokens))
            assert kind == FREE or kept[name][-1] == 1.0, f"{name}: a constrained sample did not pass the filter"
    return {
        "batch": batch,
        "kind": kind,
        "samples": n,
        "threads": threads,
        "seconds": seconds,
        "tokens": counts,
        "kept": kept,
    }


def _real(tokens: Any, stops: Any) -> int:
    """(n, new_tokens): tokens up to and with the end of each answer."""
    import numpy as np

    ended = np.isin(tokens, stops).cumsum(axis=1) - np.isin(tokens, stops) > 0
    return int((~ended).sum())


def _kept(world: Any, tokens: Any) -> float:
    """The share of answers that the filter keeps."""
    from subl_jax.channels import numbers as filters
    from subl_jax.worlds.chat import writing

    reasons = filters.reasons(writing.spelled(world, tokens), filters.NumbersFilter())
    return sum(reason is None for reason in reasons) / len(reasons)


def _generator(
    world: Any, arrays: Any, model: Any, prompts: list[list[int]], batch: int, kind: str
) -> Callable[[int], Any]:
    """new tokens → (prompts, completion_tokens) int32, by `generate`, `batch` prompts at a time.

    With fewer tokens than a whole call has only a few of the first batch are written, to warm up.
    """
    import numpy as np
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    from subl_jax.channels.numbers import NumbersFilter

    stops, pad = arrays["stops"].tolist(), world.pad
    automaton = world.automaton(NumbersFilter()) if kind == CONSTRAINED else None

    @torch.inference_mode()
    def generate(new_tokens: int) -> Any:
        config = GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=stops,
            pad_token_id=pad,
            use_cache=True,
        )
        parts = []
        whole = new_tokens == world.completion_tokens
        for start in range(0, len(prompts) if whole else 1, batch):
            rows = prompts[start : start + (batch if whole else min(batch, _FEW_PROMPTS))]
            longest = max(map(len, rows))
            tokens = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
            only = [] if automaton is None else [_only(automaton, longest, world.completion_tokens)]
            drawn = model.generate(
                tokens, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList(only)
            )
            own = drawn[:, longest:].numpy()
            parts.append(np.pad(own, ((0, 0), (0, world.completion_tokens - own.shape[1])), constant_values=stops[0]))
        return np.concatenate(parts)

    return generate


def _only(automaton: Any, prompt: int, most: int) -> Callable[[Any, Any], Any]:
    """The automaton as a logits processor for one batch."""
    import numpy as np
    import torch

    tokens = torch.from_numpy(automaton.tokens.astype(np.int64))
    following = torch.from_numpy(automaton.next.astype(np.int64))
    shortest = torch.from_numpy(automaton.shortest.astype(np.int64))
    state = None

    def process(input_ids: Any, scores: Any) -> Any:
        nonlocal state
        count = input_ids.shape[1] - prompt
        if count == 0:
            state = torch.full((len(input_ids),), automaton.start)
        else:
            # Rows that have ended are filled with a pad, which may be no token of the automaton; their state stays.
            last = input_ids[:, -1].contiguous()
            place = torch.searchsorted(tokens, last).clamp(max=len(tokens) - 1)
            after = following[state, place]
            state = torch.where((tokens[place] == last) & (after >= 0), after, state)
        own = following[state]
        fits = (own >= 0) & (shortest[own] < most - count)
        allowed = torch.full_like(scores, -torch.inf)
        allowed[:, tokens] = torch.where(fits, scores[:, tokens], -torch.inf)
        return allowed

    return process


def tables(data: Data) -> list[Table]:
    rows, one_at_a_time, calls = [], {}, len({block["call"] for block in data["blocks"]})
    for block in data["blocks"]:
        if block["batch"] == 1:
            one_at_a_time[block["kind"]] = Spread.of(_rates(block, THEIRS)).median
    for block in data["blocks"]:
        rates, one = {name: _rates(block, name) for name in (OURS, THEIRS)}, one_at_a_time.get(block["kind"])
        samples = {name: measuring.rates(block["seconds"][name], block["samples"]) for name in (OURS, THEIRS)}
        for name in (OURS, THEIRS):
            kept = sum(block["kept"][name]) / len(block["kept"][name])
            rows.append(
                [
                    str(block["batch"]),
                    block["kind"],
                    name if name == OURS else f"{name}, {block['threads']} thread{'s'[: block['threads'] > 1]}",
                    str(block["samples"]),
                    str(Spread.of(rates[name])),
                    str(Spread.of(samples[name])),
                    f"{kept:.0%}",
                    *(str(measuring.ratio(of[OURS], of[THEIRS])) if name == OURS else "1" for of in (rates, samples)),
                    measuring.number(Spread.of(rates[name]).median / one) if one else "",
                ]
            )
    columns = [
        "rows",
        "kind",
        "",
        "samples",
        "new tokens/s",
        "samples/s",
        "kept",
        "×, tokens",
        "×, samples",
        "× one prompt at a time",
    ]
    note = (
        f"At most {data['new_tokens']} new tokens each; what is padding or after the end of an answer is not counted. "
        "× is here against transformers, of medians, with the range over rounds; of few samples, those of one may by "
        "chance be longer. The last column compares tokens/s with the median of transformers at 1 row. "
        f"Measured in {calls} call{'s'[: calls > 1]}; those of one kind and number of rows always in one."
    )
    return [Table("Writing numbers with SmolLM2-135M", columns, rows, note)]


def _rates(block: Data, name: str) -> list[float]:
    """New tokens a second, in every round."""
    return [count / each for count, each in zip(block["tokens"][name], block["seconds"][name], strict=True)]


if __name__ == "__main__":
    measuring.main(NAME, options_of(), measure, tables)
