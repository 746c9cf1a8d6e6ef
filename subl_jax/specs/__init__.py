"""What to compute: frozen specs that nest by value. Equal specs are one computation."""

from subl_jax.specs.audited import Audited, Row
from subl_jax.specs.base import Node, Spec, host, label, nearest, parts, roles, static, traced
from subl_jax.specs.data import Data, Dataset, Imported, Stream, Transformed, Written
from subl_jax.specs.inference import Answer, Answers, Inference, ranked
from subl_jax.specs.lineage import (
    ancestry,
    arm_of,
    checked,
    derangement,
    flat,
    lineage,
    named,
    origin,
    run_id,
    source,
    trait_behind,
    trait_of,
)
from subl_jax.specs.metrics import Metric
from subl_jax.specs.models import Base, Mix, Prompted, Teacher, Trained, Tuned
from subl_jax.specs.parts import PROJECTIONS, Lora, Sampling, Train
from subl_jax.specs.program import Parent, bind, static_form, traced_values
from subl_jax.specs.seams import (
    AroundAnother,
    Audit,
    Context,
    Moment,
    Objective,
    Probe,
    Scores,
    Sources,
    TextTransform,
    Transform,
)
from subl_jax.specs.stored import alias, class_of, from_json, to_json
from subl_jax.specs.student import Student
from subl_jax.specs.world import (
    ExportsAdapters,
    ExportsModels,
    FiltersInProgram,
    HoldsTokens,
    Microbatches,
    Notes,
    OwnGeometry,
    Pretrains,
    ReadsResiduals,
    Steered,
    SystemPrompted,
    TakesAdapters,
    TakesSystemPrompts,
    World,
    WritesTexts,
    model_of,
)
