"""A check in sentences: the verdict, what noise and signs say, how far the gradient reaches."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.gradchecks.result import Check, DirectionCheck
from headwater.gradchecks.verdicts import MEANING, Verdict, swings

SMALL = 0.1
"""Share of an effect below which a slope promises next to nothing of it."""
NOISY = 1e4
"""Roundings of the value beyond which float64 is not float64 inside."""


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with a sign and so many digits."""
    return "-" if value is None else f"{value:+.{digits}g}"


def size(value: float) -> str:
    """Return an error's size: two digits are all it has."""
    return f"{value:.1e}" if value == 0 or not 1e-2 <= abs(value) < 1e3 else f"{value:.2g}"


def verdict(check: Check, objective: str) -> str:
    """Return the verdict in words.

    Args:
        check: What was found.
        objective: What the gradient is of.
    """
    words = {
        "agree": _agree,
        "disagree": _disagree,
        "constant": _constant,
        "stationary": _stationary,
        "ill-conditioned": _ill_conditioned,
        "unresolved": _unresolved,
    }
    said = words.get(check.verdict, lambda *_: MEANING[check.verdict])(check, objective)
    hint = f": {check.hint}" if check.hint and check.verdict != "disagree" else ""
    return f"{check.verdict.upper()}: {said}{hint}."


def sentences(check: Check) -> list[str]:
    """Return everything beside the verdict that the numbers say, most important first."""
    found = [
        _linear(check), _forward(check), _signs(check), _reach(check), _entries(check),
        _precision(check), _noise(check),
    ]  # fmt: skip
    return [one for one in found if one] + [f"Note: {note.rstrip('.')}." for note in check.notes]


def region(check: DirectionCheck, step: int) -> str:
    """Return what rules the error at a step: truncation, plateau or rounding."""
    shortest, longest = check.difference.plateau
    half = check.difference.steps[step]
    if half > longest:
        return "truncation"
    return "plateau" if half >= shortest else "rounding"


def _agree(check: Check, objective: str) -> str:
    agreeing = _with(check, "agree")
    worst = max(one.apart for one in agreeing)
    shares = [one.difference.bar / abs(one.difference.slope) for one in agreeing]
    low, high = size(min(shares)), size(max(shares))
    bars = f"error bar {low}" if low == high else f"error bars {low} to {high}"
    flat = len(_with(check, "flat"))
    lost = len(_with(check, "ill-conditioned"))
    beside = ""
    if flat:
        one = flat == 1
        # the slope itself is known: it is the gradient that is not exact enough
        known = [abs(found.difference.slope) > 10 * found.difference.bar
                 for found in _with(check, "flat")]  # fmt: skip
        coarse = any(known)
        beside += f"; {flat} more {'is' if one else 'are'} " + (
            f"below what {'its' if one else 'their'} number format can tell"
            if coarse
            else "too flat to be told from zero"
        )
    if lost:
        beside += f"; {lost} more {'is' if lost == 1 else 'are'} lost in rounding"
    return (
        f"{check.claimed} gradient is the slope of {objective} in {_all(len(agreeing), check)}, "
        f"to {size(worst)} of it or better ({bars})"
        f"{beside}"
    )


def _all(count: int, check: Check) -> str:
    total = len(check.directions)
    if count == total:
        return "the only direction" if total == 1 else f"all {total} directions"
    return f"{count} of {total} directions"


def _disagree(check: Check, objective: str) -> str:
    wrong = _with(check, "disagree")
    worst = check.steepest
    slope, bar = worst.difference.slope, worst.difference.bar
    times = worst.gradient / slope if slope else 0.0
    told = abs(times) > 0.005 and abs(times - 1) > 0.01
    ratio = f": {number(times, 3)} times" if told else f": apart by {size(worst.apart)} of it"
    hint = f". What it looks like: {check.hint}" if check.hint else ""
    return (
        f"{check.claimed} gradient is not the slope of {objective} in {len(wrong)} of "
        f"{len(check.directions)} directions. Along {worst.name} it says "
        f"{number(worst.gradient, 6)}, the differences {number(slope, 6)} with an error bar of "
        f"{size(bar)}{ratio}{hint}"
    )


def _constant(check: Check, objective: str) -> str:
    moves = f"nothing that was tried moves {objective} from {check.objective:.6g}"
    if check.movement <= check.rounding:
        return moves
    return (
        f"{moves} by more than {size(check.movement)}, which the rounding of an operation inside "
        "may do"
    )


def _stationary(check: Check, objective: str) -> str:
    return (
        f"the slope of {objective} is zero in every direction and its gradient says so, yet it "
        "moves: a stationary point, such as the minimum of a divergence from the run itself. A "
        "gradient taken here says nothing of any effect"
    )


def _ill_conditioned(check: Check, objective: str) -> str:
    steep = max(abs(one.gradient) for one in check.directions)
    moves = check.reach is not None and abs(check.reach.exact) > 1e-3 * abs(check.objective)
    if moves and steep == 0 and not any(one.difference.slope for one in check.directions):
        return (
            f"gradient and differences of {objective} are exactly 0 around the point, and long "
            "steps move it: a staircase (round, argmax, top-k), or saturated beyond the number "
            "format. A gradient of 0 is right here and says nothing of any effect"
        )
    if any(swings(one.difference, abs(check.objective)) for one in check.directions):
        return (
            f"{objective} swings at the shortest steps as it does at long ones, so no step "
            "resolves its slope: a wave shorter than they are, or an operation in lower precision "
            "whose result was converted. Give x in smaller units, or directions"
        )
    bar = min(one.difference.bar for one in check.directions)
    said = (
        f"the slope of {objective} is lost in rounding: the gradient says {size(steep)} at most, "
        f"and no error bar is below {size(bar)}"
    )
    reach = check.reach
    if reach is not None and moves and abs(reach.estimate) < SMALL * abs(reach.exact):
        said += (
            f". It is saturated, not unimportant: {removal(check).lower()} loses "
            f"{number(reach.exact)}"
        )
    return said


def _unresolved(check: Check, objective: str) -> str:
    right = [one for one in check.directions if one.gradient * one.difference.slope > 0]
    return (
        f"{check.dtype} is too coarse to measure the slope of {objective}; the signs agree in "
        f"{len(right)} of {len(check.directions)} directions, which is no check. Check in float64"
    )


def _linear(check: Check) -> str:
    if check.verdict not in ("agree", "disagree"):
        return ""
    steepest = check.steepest
    far = steepest.difference.linear
    if far is None:
        return ""
    least = "at least " if far >= 0.99 * float(steepest.difference.steps.max()) else ""
    return (
        f"Linear range along {steepest.name}: both one-sided slopes stay within 10 % up to a step "
        f"of {least}{far:.3g}, {far / check.size:.2g} of the value's root mean square."
    )


def _forward(check: Check) -> str:
    pairs = [(one.gradient, one.forward) for one in check.directions if one.forward is not None]
    if not pairs or check.verdict not in ("agree", "disagree", "kink", "jump"):
        return ""
    scale = max(max(abs(a), abs(b)) for a, b in pairs)
    worst = max(abs(a - b) for a, b in pairs) / scale if scale else 0.0
    if worst <= 1e-4:
        if check.verdict == "disagree":
            return ""  # with the gradient, against the differences: the hint has it
        close = f"to {size(worst)}" if worst else "exactly"
        return f"Forward-mode differentiation gives the same slopes, {close}."
    if check.claimed != "autograd's":
        return ""
    return (
        f"Forward-mode differentiation gives other slopes (up to {size(worst)} of the steepest): "
        "an operation's backward and its own derivative differ."
    )


def _signs(check: Check) -> str:
    signs = check.signs
    if signs is None or not signs.scaling[1] or check.verdict != "agree":
        return ""
    if bool((check.value == 1).all()):
        return ""  # of gates at rest, adding and scaling are one and the same
    misread = signs.scaling_by_gradient[1] - signs.scaling_by_gradient[0]
    text = (
        f"Signs over {signs.entries} entries, {signs.negative} of them negative, counted where the "
        f"objective moves by more than its noise. Adding to an entry moves it as the gradient "
        f"says: {_of(signs.adding)}. Scaling one up moves it as activation times gradient says: "
        f"{_of(signs.scaling)}"
    )
    if misread:
        whose = (
            "every one of them a negative entry"
            if misread == signs.misread_negative
            else f"{signs.misread_negative} of them negative entries"
        )
        text += f"; the gradient alone has {misread} of these signs wrong, {whose}"
    return (
        f"{text}. Setting it to zero moves it with the sign of minus activation times gradient: "
        f"{_of(signs.zeroing)}; no small step, so no gradient promises it."
    )


def _of(counts: tuple[int, int]) -> str:
    return f"{counts[0]} of {counts[1]}"


def removal(check: Check) -> str:
    """Return what is done to the whole value to see what the objective loses."""
    if check.name.startswith("the gate of "):
        return "Closing it"
    return "Closing every gate" if check.name == "gates" else "Setting the whole value to zero"


def _reach(check: Check) -> str:
    reach = check.reach
    if reach is None or check.verdict not in ("agree", "stationary", "ill-conditioned"):
        return ""
    start = (
        f"{removal(check)} loses {number(reach.exact)} (exact); activation times gradient "
        f"estimates {number(reach.estimate)}."
    )
    if reach.linear is None:
        return f"{start} No step resolves the slope along the value itself."
    if reach.is_inside:
        return f"{start} The slope holds all the way."
    off = abs(reach.estimate - reach.exact)
    far = f"{start} The slope holds for {100 * reach.linear:.2g} % of the way to zero"
    if off <= 0.1 * abs(reach.exact):
        return f"{far}; that the two are close all the same is nothing that a slope promises."
    return f"{far}: the ablation lies outside the gradient's reach."


def _entries(check: Check) -> str:
    if not check.entries or check.verdict == "constant":
        return ""
    ones = all(one.weight == 1 for one in check.entries)
    weights = "grad_outputs=ones_like(...)" if ones else "these grad_outputs"
    of = "the SUM of the entries" if ones else "the weighted sum of the entries"
    opposite = sum(one.opposite for one in check.entries) / len(check.entries)
    return (
        f"With {weights} this is the gradient of {of}, not of any one of them: the "
        f"{len(check.entries)} entries shown move the other way than the sum in "
        f"{100 * opposite:.0f} % of entries and directions."
    )


def _precision(check: Check) -> str:
    if check.precision is None or check.verdict not in ("agree", "disagree"):
        return ""
    found = check.precision
    return (
        f"Precision, another question than correctness: computed in {found.dtype}, the gradient is "
        f"off by up to {size(found.largest)} of its largest entry (cosine {found.cosine:.6f}, "
        f"{100 * found.signs:.4g} % of signs right)."
    )


def _noise(check: Check) -> str:
    if check.dtype != "float64" or not check.objective:
        return ""
    # what is rounded inside is so along every direction; a bend that is read as noise is not
    noise = min((one.difference.noise for one in _with(check, "agree")), default=0.0)
    rounding = 2.2e-16 * abs(check.objective)
    if noise <= NOISY * rounding:
        return ""
    return (
        f"The objective's noise is {size(noise)}, {size(noise / rounding)} times float64's "
        "rounding: an operation inside runs in lower precision."
    )


def _with(check: Check, verdict: Verdict) -> Sequence[DirectionCheck]:
    return [one for one in check.directions if one.verdict == verdict]
