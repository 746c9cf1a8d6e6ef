"""What data tell of their writer, given a model that it may come from, one file each (docs/seams/audits.md)."""

from subl_jax.audits.adam_update import AdamUpdate
from subl_jax.audits.chunks import in_chunks, of_tokens
from subl_jax.audits.coverage import Coverage
from subl_jax.audits.direction_cosine import DirectionCosine
from subl_jax.audits.divergence import Divergence
from subl_jax.audits.entropy import Entropy
from subl_jax.audits.first_update import FirstUpdate
from subl_jax.audits.fisher_update import FisherUpdate
from subl_jax.audits.gradient_cosine import GradientCosine
from subl_jax.audits.log_ratio import LogRatio
from subl_jax.audits.mean_log_likelihood import MeanLogLikelihood
from subl_jax.audits.position_kl import PositionKl
from subl_jax.audits.prediction import FirstStep, Prediction
from subl_jax.audits.prompt_ratio import PromptRatio
from subl_jax.audits.random_tokens import RandomTokens
from subl_jax.audits.rank_residual import RankResidual
from subl_jax.audits.rollout import Rollout
from subl_jax.audits.score_vectors import ScoreVectors
from subl_jax.audits.surprise import Surprise
from subl_jax.audits.towards import Towards
