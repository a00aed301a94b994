"""headwater: which parts of a transformer a behavior flows from, audited against the truth.

Names are imported on first use, so that `import headwater` costs milliseconds and loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headwater.attribution import Attribution as Attribution
    from headwater.attribution import attribute as attribute
    from headwater.attribution.bootstrap import Bootstrap as Bootstrap
    from headwater.attribution.curve import Curve as Curve
    from headwater.attribution.interaction import Interaction as Interaction
    from headwater.attribution.interaction import interaction as interaction
    from headwater.audits import Audit as Audit
    from headwater.audits.comparison import Comparison as Comparison
    from headwater.audits.comparison import compare as compare
    from headwater.audits.diagnosis import Diagnosis as Diagnosis
    from headwater.audits.run import audit as audit
    from headwater.audits.survey import survey as survey
    from headwater.audits.survey_result import Survey as Survey
    from headwater.audits.verify import verify as verify
    from headwater.components import attentions as attentions
    from headwater.components import channels as channels
    from headwater.components import conv as conv
    from headwater.components import features as features
    from headwater.components import heads as heads
    from headwater.components import keys as keys
    from headwater.components import mixers as mixers
    from headwater.components import mlps as mlps
    from headwater.components import neurons as neurons
    from headwater.components import nodes as nodes
    from headwater.components import queries as queries
    from headwater.components import residual as residual
    from headwater.components import ssm as ssm
    from headwater.components import ssm_heads as ssm_heads
    from headwater.components import tokens as tokens
    from headwater.components import values as values
    from headwater.dictionaries.collection import Dictionaries as Dictionaries
    from headwater.dictionaries.dictionary import Dictionary as Dictionary
    from headwater.dictionaries.read import read_dictionary as read_dictionary
    from headwater.dictionaries.write import write_dictionary as write_dictionary
    from headwater.dictionary_loading import load_dictionaries as load_dictionaries
    from headwater.directs.attribute import attribute_logit as attribute_logit
    from headwater.directs.result import LogitAttribution as LogitAttribution
    from headwater.errors import HeadwaterError as HeadwaterError
    from headwater.estimators import AtPStar as AtPStar
    from headwater.estimators import Auto as Auto
    from headwater.estimators import Estimator as Estimator
    from headwater.estimators import Exact as Exact
    from headwater.estimators import Gradient as Gradient
    from headwater.estimators import IntegratedGradients as IntegratedGradients
    from headwater.estimators import SecondOrder as SecondOrder
    from headwater.estimators import Shapley as Shapley
    from headwater.estimators import TrainedCircuit as TrainedCircuit
    from headwater.estimators import TrainedMask as TrainedMask
    from headwater.estimators import Trapezoid as Trapezoid
    from headwater.feature_circuits.annotations import read_annotations as read_annotations
    from headwater.feature_circuits.annotations import write_annotations as write_annotations
    from headwater.feature_circuits.circuit import feature_circuit as feature_circuit
    from headwater.feature_circuits.contexts import Contexts as Contexts
    from headwater.feature_circuits.result import FeatureCircuit as FeatureCircuit
    from headwater.gates import GatedFunction as GatedFunction
    from headwater.gradchecks.model import gradcheck as gradcheck
    from headwater.gradchecks.report import GradientReport as GradientReport
    from headwater.gradchecks.tensors import check_gradient as check_gradient
    from headwater.lenses import Lens as Lens
    from headwater.lenses import LensSummary as LensSummary
    from headwater.lenses import Translator as Translator
    from headwater.lenses import fit_lens as fit_lens
    from headwater.lenses import lens as lens
    from headwater.lenses import lens_dataset as lens_dataset
    from headwater.metrics import cross_entropy as cross_entropy
    from headwater.metrics import kl as kl
    from headwater.metrics import logit_diff as logit_diff
    from headwater.metrics import logprob as logprob
    from headwater.metrics import metric as metric
    from headwater.metrics import prob as prob
    from headwater.metrics import prob_diff as prob_diff
    from headwater.models import Model as Model
    from headwater.models import load as load
    from headwater.models import wrap as wrap
    from headwater.prompts import Pair as Pair
    from headwater.prompts import Task as Task
    from headwater.references import Corrupted as Corrupted
    from headwater.references import Mean as Mean
    from headwater.references import PositionalMean as PositionalMean
    from headwater.references import Resample as Resample
    from headwater.references import Tangent as Tangent
    from headwater.references import Zero as Zero
    from headwater.saes import Inspection as Inspection
    from headwater.saes import inspect_dictionary as inspect_dictionary
    from headwater.saes import train_dictionary as train_dictionary
    from headwater.shifts.examples import Examples as Examples
    from headwater.shifts.probe import Probe as Probe
    from headwater.shifts.run import shift as shift
    from headwater.trace.backward import backward as backward
    from headwater.trace.registry import save as save
    from headwater.zoo import task as task

_HOME = {
    "attribution": "Attribution attribute",
    "attribution.bootstrap": "Bootstrap",
    "attribution.curve": "Curve",
    "attribution.interaction": "Interaction interaction",
    "audits": "Audit",
    "audits.comparison": "Comparison compare",
    "audits.diagnosis": "Diagnosis",
    "audits.run": "audit",
    "audits.survey": "survey",
    "audits.survey_result": "Survey",
    "audits.verify": "verify",
    "components": "attentions channels conv features heads keys mixers mlps neurons nodes queries "
    "residual ssm ssm_heads tokens values",
    "dictionaries.collection": "Dictionaries",
    "dictionaries.dictionary": "Dictionary",
    "dictionaries.read": "read_dictionary",
    "dictionaries.write": "write_dictionary",
    "dictionary_loading": "load_dictionaries",
    "directs.attribute": "attribute_logit",
    "directs.result": "LogitAttribution",
    "errors": "HeadwaterError",
    "estimators": "AtPStar Auto Estimator Exact Gradient IntegratedGradients SecondOrder Shapley "
    "TrainedCircuit TrainedMask Trapezoid",
    "gates": "GatedFunction",
    "gradchecks.model": "gradcheck",
    "gradchecks.report": "GradientReport",
    "gradchecks.tensors": "check_gradient",
    "feature_circuits.annotations": "read_annotations write_annotations",
    "feature_circuits.circuit": "feature_circuit",
    "feature_circuits.contexts": "Contexts",
    "feature_circuits.result": "FeatureCircuit",
    "lenses": "Lens LensSummary Translator fit_lens lens lens_dataset",
    "metrics": "cross_entropy kl logit_diff logprob metric prob prob_diff",
    "models": "Model load wrap",
    "prompts": "Pair Task",
    "references": "Corrupted Mean PositionalMean Resample Tangent Zero",
    "saes": "Inspection inspect_dictionary train_dictionary",
    "shifts.examples": "Examples",
    "shifts.probe": "Probe",
    "shifts.run": "shift",
    "trace.backward": "backward",
    "trace.registry": "save",
    "zoo": "task",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [*sorted(_MODULE_OF), "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # slower to import than all the rest of this file

        return version("headwater")
    if name not in _MODULE_OF:
        from headwater.errors import did_you_mean

        raise AttributeError(
            f"module 'headwater' has no attribute {name!r}.{did_you_mean(name, __all__)}"
        )
    value = getattr(import_module(f"headwater.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
