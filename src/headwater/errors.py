"""Everything headwater raises on purpose.

    HeadwaterError
    ├── UnknownNameError (ValueError)        a name nobody knows; the closest one is offered
    │   ├── UnknownSiteError
    │   ├── UnknownComponentError
    │   ├── UnknownModelError
    │   ├── UnknownTaskError
    │   ├── UnknownTruthError                no ground-truth model of the zoo
    │   ├── UnknownModuleError (AttributeError)   a module path the model does not have
    │   ├── UnknownWordError                 a prompt or answer the tokenizer has no token for
    │   └── UnknownOptionError               an estimator, metric, reference, dtype or device
    ├── UnsupportedModelError (ValueError)   a model headwater cannot run with gates
    │   ├── FailedProofError                 the adapter's self-proof failed; carries the numbers
    │   └── UnavailableSiteError             this model does not offer this site; says why
    ├── ModelStateError (RuntimeError)       dropout is active, a hook is in the way, no gradient
    ├── TraceError (RuntimeError)            a trace used in a way that has no answer
    │   ├── OutsideTraceError                a value asked for while no run is open
    │   ├── AmbiguousTraceError              two runs of one model are open: say which
    │   ├── OutOfOrderError                  the model has passed this value and nobody kept it
    │   ├── LateWriteError                   an edit of what the model has already used
    │   ├── NeverRanError                    the module was not called, or not that often
    │   ├── GradientError                    there is no gradient to read here; says why
    │   └── UnknownInterpreterError          this Python's bytecode is not known: use hw.backward
    ├── PromptError (ValueError)             a prompt or pair that cannot be used
    │   ├── PairFileError                    a file of pairs; names file and line
    │   ├── UnalignedPromptsError            clean and corrupted differ in length
    │   ├── AnswerError                      an answer the metric cannot read
    │   └── MissingFieldError                the task lacks what a metric or reference needs
    ├── MetricError (ValueError)             a metric that cannot be attributed
    │   ├── ConstantMetricError              the same number whatever the logits are
    │   ├── StationaryMetricError            gradient exactly zero where it would be taken
    │   └── NonFiniteError                   NaN or infinity in a metric, value or score
    ├── GradcheckError (ValueError)          a gradient that cannot be checked; says why
    │   └── NoPathError                      nothing leads from the value to the objective
    ├── GateError (ValueError)               gates used in a way that has no meaning
    │   ├── NestedComponentsError            one component lies inside another
    │   ├── MissingCapabilityError           the gated function cannot do what an estimator needs
    │   └── UnfitReferenceError              an off value that cannot be used here
    ├── DictionaryError (ValueError)         a dictionary that cannot be used; names file and tensor
    │   └── UnsupportedDictionaryError       a kind of dictionary that is no sum of features
    ├── ResultError (ValueError)             saved or live results
    │   ├── RunFolderError                   the folder holds another specification, or no run
    │   └── ModelGoneError                   the result outlived its model; pass model=
    └── MissingExtraError (ImportError)      an optional dependency; the message names the extra

Notices are warnings: HeadwaterNotice (UserWarning).

Every message states the fact with its values, where it happened, and what to type instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HeadwaterError(Exception):
    """Root of every error headwater raises on purpose."""


class UnknownNameError(HeadwaterError, ValueError):
    """A name nobody knows; the message offers the closest one."""


class UnknownSiteError(UnknownNameError):
    """A site path that the model does not have."""


class UnknownComponentError(UnknownNameError):
    """A component name that does not parse or is not among the scored ones."""


class UnknownModelError(UnknownNameError):
    """Neither an embedded model, nor a local folder, nor an id that can be fetched."""


class UnknownTaskError(UnknownNameError):
    """Neither an embedded task nor a file."""


class UnknownTruthError(UnknownNameError):
    """No ground-truth model of the zoo has that name."""


class UnknownWordError(UnknownNameError):
    """A word of a prompt or answer for which the tokenizer only has its unknown token."""


class UnknownModuleError(UnknownNameError, AttributeError, LookupError):
    """A module path or index that the model does not have; the message offers the closest."""


class UnknownOptionError(UnknownNameError):
    """An estimator, metric, reference, component kind, dtype or device that does not exist."""


class UnsupportedModelError(HeadwaterError, ValueError):
    """A model headwater cannot run with gates; the message says which part and why."""


class FailedProofError(UnsupportedModelError):
    """The adapter's self-proof at load failed; the message carries the numbers."""


class UnavailableSiteError(UnsupportedModelError):
    """This model does not offer this site; the message says why and what it offers."""


class ModelStateError(HeadwaterError, RuntimeError):
    """The model is in a state in which no trustworthy run is possible."""


class TraceError(HeadwaterError, RuntimeError):
    """A trace used in a way that has no answer."""


class OutsideTraceError(TraceError):
    """A value of a run was asked for, but no run of this model is open in this thread."""


class AmbiguousTraceError(TraceError):
    """Two runs of one model are open, and it was not said which one is meant."""


class OutOfOrderError(TraceError):
    """The model has passed this value and nobody kept it."""


class LateWriteError(TraceError):
    """An edit of a value or gradient that has already been used."""


class NeverRanError(TraceError):
    """The module was not called in this run, or not that often."""


class GradientError(TraceError):
    """There is no gradient to read; the message says why."""


class UnknownInterpreterError(TraceError):
    """The bytecode of this Python is not known, so `with loss.backward():` cannot be seen."""


class PromptError(HeadwaterError, ValueError):
    """A prompt or pair that cannot be used."""


class PairFileError(PromptError):
    """A file of pairs that cannot be read; the message names file and line."""


class UnalignedPromptsError(PromptError):
    """A clean and a corrupted prompt that differ in length."""


class AnswerError(PromptError):
    """An answer that the metric cannot read."""


class MissingFieldError(PromptError):
    """The task lacks a field that the metric or the reference needs."""


class MetricError(HeadwaterError, ValueError):
    """A metric that cannot be attributed."""


class ConstantMetricError(MetricError):
    """The metric is the same number whatever the logits are."""


class StationaryMetricError(MetricError):
    """The metric's gradient is exactly zero at the point where it would be taken."""


class NonFiniteError(MetricError):
    """NaN or infinity in a metric, an activation or a score."""


class GradcheckError(HeadwaterError, ValueError):
    """A gradient that cannot be checked; the message says why."""


class NoPathError(GradcheckError):
    """Nothing leads from the value to the objective, so there is no gradient to check."""


class GateError(HeadwaterError, ValueError):
    """Gates used in a way that has no meaning."""


class NestedComponentsError(GateError):
    """One gated component lies inside another and both would be moved at once."""


class MissingCapabilityError(GateError):
    """The gated function lacks a capability that the estimator names."""


class UnfitReferenceError(GateError):
    """An off value that cannot be used at a site or for a task."""


class DictionaryError(HeadwaterError, ValueError):
    """A dictionary that cannot be read or used here; names the file, the tensor and its shape."""


class UnsupportedDictionaryError(DictionaryError):
    """A kind of dictionary that headwater cannot use, by name; the message says why."""


class ResultError(HeadwaterError, ValueError):
    """A saved or live result that cannot be used."""


class RunFolderError(ResultError):
    """The folder holds another specification, or no run at all."""


class ModelGoneError(ResultError):
    """The result outlived its model; pass `model=`."""


class MissingExtraError(HeadwaterError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class HeadwaterNotice(UserWarning):
    """Something that is probably not what was meant; shown once."""


def closest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` of the `known` names nearest to `name` by spelling, best first."""
    known = list(known)
    by_fold = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), by_fold, n=count, cutoff=0.5)
    return [by_fold[match] for match in matches]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Closest: 'a', 'b'.` with the known names nearest to `name`, or an empty string."""
    found = closest(name, known)
    return f" Closest: {', '.join(repr(candidate) for candidate in found)}." if found else ""
