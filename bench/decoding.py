"""Sampled tokens per second: with the key-value cache and without it, and what the cuts of the sampler cost.

One model of the default sweep's size writes number sequences of the toy language, on one device with all its threads.
Without the cache every token recomputes the whole sequence, in a program of fixed shapes like the cached one. With
`cut` a program sorts the logits at every token, so that top-k and top-p can be lane values; here they cut nothing.
"""

import argparse
from typing import Any

import measuring
from measuring import Data, Spread, Table

NAME = "decoding"
BATCHES = (64, 512, 2048)
ROUNDS = 4
CACHED, UNCACHED, CUT = "KV cache", "no cache", "KV cache, cut=True"


def measure(options: argparse.Namespace) -> Data:
    from subl_jax.runtime import devices

    devices.prepare()
    from subl_jax.worlds.toy_language import ToyLanguage

    world = ToyLanguage()
    batches, seconds, rounds = (BATCHES[:1], 0.05, 2) if options.quick else (BATCHES, 1.0, ROUNDS)
    return {
        "new_tokens": world.completion_length,
        "equal_tokens": _equal_tokens(world, 64),
        "batches": [_batch(world, batch, seconds, rounds) for batch in batches],
    }


def _batch(world: Any, batch: int, seconds: float, rounds: int) -> Data:
    import functools

    import jax

    from subl_jax import specs

    params, key = world.init(jax.random.key(0)), jax.random.key(1)

    def writer(cut: bool) -> Any:
        spec = specs.Sampling(cut=cut)

        def write(params: Any, key: jax.Array, values: dict[str, jax.Array]) -> jax.Array:
            return world.write(params, jax.random.split(key, batch), specs.bind(spec, values))

        return functools.partial(jax.jit(write), params, key, specs.traced_values(spec))

    prompt, keys = _prompts(world, params, batch)
    sampling = specs.Sampling()
    uncached = functools.partial(jax.jit(functools.partial(generate_without_cache, world, sampling)), params)
    writers = {CACHED: writer(False), UNCACHED: functools.partial(uncached, prompt, keys), CUT: writer(True)}

    def repeat(name: str, times: int) -> None:
        for _ in range(times):
            writers[name]().block_until_ready()

    times = {name: measuring.steps_for(functools.partial(repeat, name), seconds, few=1) for name in writers}
    timings = measuring.interleaved({name: functools.partial(repeat, name, times[name]) for name in writers}, rounds)
    return {
        "batch": batch,
        "contestants": {name: {"calls": times[name], "seconds": each} for name, each in timings.items()},
    }


def _prompts(world: Any, params: Any, batch: int) -> tuple[Any, Any]:
    """Prompts as `world.write` makes them, (batch, prompt_length) int32, and a key for each."""
    import jax
    import jax.numpy as jnp

    from subl_jax import specs

    written = world.write(params, jax.random.split(jax.random.key(1), batch), specs.Sampling())
    return written[:, : world.prompt_length].astype(jnp.int32), jax.random.split(jax.random.key(2), batch)


def generate_without_cache(world: Any, sampling: Any, params: Any, prompt: Any, keys: Any) -> Any:
    """What `sampling.generate` gives with cut=False, for prompts of full length: (batch, completion_length) int32."""
    import jax
    import jax.numpy as jnp

    from subl_jax.models import transformer
    from subl_jax.models.decoding.sampling import draw
    from subl_jax.worlds.toy_language import EOS, PAD, language

    index, (batch, longest) = language(world).index, prompt.shape
    tokens = jnp.pad(prompt, ((0, 0), (0, world.completion_length)))

    def step(carry: tuple[Any, Any], t: Any) -> tuple[tuple[Any, Any], Any]:
        tokens, done = carry
        place = longest + t
        at = jnp.broadcast_to(place - 1, (batch, 1))
        logits = transformer.apply(world.model, params, tokens[:, :-1], logits_at=at)[0][:, 0]
        token = draw(jax.vmap(jax.random.fold_in, (0, None))(keys, t), logits, sampling, cut=False)
        token = jnp.where(done, index[PAD], token)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], place, axis=1)
        return (tokens, done | (token == index[EOS])), token

    _, drawn = jax.lax.scan(step, (tokens, jnp.zeros(batch, bool)), jnp.arange(world.completion_length))
    return drawn.T


def _equal_tokens(world: Any, batch: int) -> float:
    """The share of tokens that both ways of decoding draw alike from the same keys.

    Raises:
      AssertionError: it is below 0.99; rounding alone makes a difference very rarely.
    """
    import jax
    import jax.numpy as jnp

    from subl_jax import specs
    from subl_jax.models.decoding.sampling import generate
    from subl_jax.worlds.toy_language import EOS, PAD, language

    params = world.init(jax.random.key(0))
    prompt, keys = _prompts(world, params, batch)
    index, lengths = language(world).index, jnp.full(batch, world.prompt_length)
    options = {"stop": index[EOS], "pad": index[PAD], "cut": False}
    cached = jax.jit(
        lambda: generate(
            world.model, params, prompt, lengths, keys, world.completion_length, specs.Sampling(), **options
        )
    )()
    uncached = jax.jit(lambda: generate_without_cache(world, specs.Sampling(), params, prompt, keys))()
    equal = float((cached == uncached).mean())
    assert equal >= 0.99, f"the two ways of decoding agree on {equal:.1%} of the tokens only"
    return equal


def tables(data: Data) -> list[Table]:
    rows = []
    for block in data["batches"]:
        tokens = block["batch"] * data["new_tokens"]
        rates = {
            name: measuring.rates(each["seconds"], each["calls"] * tokens)
            for name, each in block["contestants"].items()
        }
        for name, each in rates.items():
            against = str(measuring.ratio(rates[CACHED], each)) if name != CACHED else "1"
            rows.append([str(block["batch"]), name, str(Spread.of(each)), against])
    note = (
        f"{data['new_tokens']} tokens are drawn per sequence. From the same keys both ways draw the same token at "
        f"{data['equal_tokens']:.2%} of the places. Ratios are of medians, with the range over rounds."
    )
    columns = ["batch", "decoding", "tokens/s", "KV cache is faster by ×"]
    return [Table("Writing number sequences", columns, rows, note)]


if __name__ == "__main__":
    measuring.main(NAME, measuring.parser(__doc__).parse_args(), measure, tables)
