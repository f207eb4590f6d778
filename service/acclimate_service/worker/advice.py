"""What a report says at the top: what happened, in words, and what to do next.

Pure functions of the document, so the page and its reader can be argued with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from acclimate_service.domain.examples import SELECT_SHARE
from acclimate_service.domain.verdict import Decision
from acclimate_service.worker.told import CheckTold, Spec, Told, VerdictTold, short

OUT_OF_REACH = 20  # times as many images as there are: another way is shorter
WORN = 3  # looks after which new holdout images pay more than another try


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to do, and the command that does it, if one does."""

    text: str
    command: str = ""


def headline(told: Told) -> str:
    """What became of the job, in one or two sentences without jargon."""
    outcome = _outcome(told)
    moved = "; ".join(filter(None, (_movement(told, role) for role in ("target", "source"))))
    return f"{outcome} {moved[:1].upper()}{moved[1:]}." if moved else outcome


def _outcome(told: Told) -> str:
    model, first = short(told.job.model), told.job.kind == "BOOTSTRAP"
    if told.verdict is None:
        return f"{model} was taken as it came: a registration is measured, not judged."
    which = "first" if first else "new"
    if told.verdict.decision is Decision.ACCEPT:
        passed = "it beats guessing" if first else "it passed every check"
        return f"A {which} version of {model}: {passed}."
    names = _about(told, told.verdict, told.verdict.decision)
    if told.verdict.decision is Decision.INCONCLUSIVE:
        return f"No {which} version: too few held-out images to be sure of {names}."
    if first:
        return f"No {which} version: it is shown to be no better than guessing."
    return f"No {which} version: beyond the limits on {names}."


def steps(told: Told) -> tuple[Step, ...]:
    """What to do next, the most useful thing first."""
    if told.verdict is None or told.verdict.decision is Decision.ACCEPT:
        return (*_serve(told), *_refresh(told))
    if told.verdict.decision is Decision.REJECT:
        return (*_repair(told, told.verdict), *_suspects(told), _again(told), _overrule(told))
    return (*_decide(told, told.verdict), _again(told), *_refresh(told))


# ── accepted ─────────────────────────────────────────────────────────────────


def _serve(told: Told) -> list[Step]:
    model, alias = short(told.job.model), told.job.spec.promote_to
    if alias:
        return [
            Step(
                text=f"Nothing: the alias {alias} was moved to the new version together with "
                "this verdict, if it still pointed at the incumbent. To go back:",
                command=f"acclimate rollback {model} --alias {alias}",
            )
        ]
    version = short(told.version)
    which = Step(
        text="See which version this job made.",
        command=f"acclimate versions {model}",
    )
    serve = Step(
        text="Serve it: predictions change only when an alias moves.",
        command=f"acclimate promote {model} {version or 'VERSION'}",
    )
    return [serve] if version else [which, serve]


def _refresh(told: Told) -> list[Step]:
    looks = 0 if told.verdict is None else told.verdict.measurements.looks
    if looks < WORN or not (told.job.source and told.job.target):
        return []
    source = short(told.job.source)
    return [
        Step(
            text=f"Hold out new images of {source}: {looks} candidates for "
            f"{short(told.job.target)} were judged by its verify images before, and each look "
            "leaves less certainty to the next one's.",
            command=f"acclimate upload FOLDER --domain {source} --role holdout",
        )
    ]


# ── rejected ─────────────────────────────────────────────────────────────────


def _repair(told: Told, verdict: VerdictTold) -> list[Step]:
    """One step for each remedy, with the domains that it is for."""
    domains: dict[str, list[str]] = {}
    for check in _decided(verdict, Decision.REJECT):
        domains.setdefault(_remedy(told, check), []).append(_domain(told, check))
    return [Step(text=text.replace("{}", _listed(named))) for text, named in domains.items()]


def _remedy(told: Told, check: CheckTold) -> str:
    """What may help, with ``{}`` for the domain."""
    learned = check.title == "target"
    if check.kind == "accuracy" and told.job.kind == "BOOTSTRAP":
        return (
            "The network learned no more than guessing would. Look at the labels of {}, "
            "give it more training images of each class, or start from another backbone."
        )
    if check.kind == "accuracy" and learned:
        return (
            "Training on {} made it worse. Look at the labels of its images first; then give more "
            "training images, or let less move (--strategy head)."
        )
    if check.kind == "creep":
        return (
            "This version and those before it have together forgotten as much of {} as they may. "
            "Adapt from an earlier one (--base), or show more of it again: upload images in the "
            "role replay and raise --replay-per-class."
        )
    if check.kind == "accuracy":
        return (
            "Too much of {} was forgotten. Show more of it again while training: upload images in "
            "the role replay and raise --replay-per-class; or let less move (--strategy head)."
        )
    return {
        "classes": "A class of {} was lost: see the table of classes and the images lost. Give "
        f"more training images of it{'' if learned else ' in the role replay'}, as varied as "
        "those that were lost.",
        "slices": "A slice of {} was lost: see the table of slices. Give training images "
        "that carry its tag.",
        "NLL": "The probabilities on {} mean less than before: train for fewer --epochs, or let "
        "less move (--strategy head).",
        "ECE": "The confidence on {} fits less than before: train for fewer --epochs, or let "
        "less move (--strategy head).",
        "labels": "Too many labels look wrong. Correct the images listed under label suspects "
        "and upload them again; nothing else will help before that.",
        "size": "The exported file has grown over the limit: a guard with a higher "
        "size_ratio_limit and a reason takes it, if that is what you want.",
        "latency": "The exported file answered too slowly. Repeat the job while the machine is "
        "idle; if it stays slow, raise latency_ratio_limit with a reason.",
        "probabilities": "A file answers with what is no probability distribution. Do not use "
        "it; keep this report and look for broken images in the upload.",
    }.get(check.kind, check.message)


def _overrule(told: Told) -> Step:
    return Step(
        text="Only if this harm is known and wanted: overrule the guard. Who did it and why is "
        "kept with the version for ever.",
        command=f'acclimate jobs force {short(told.job.name)} --reason "…"',
    )


def _suspects(told: Told) -> list[Step]:
    count = len(told.label_suspects)
    if not count:
        return []
    verb = "label looks" if count == 1 else "labels look"
    return [Step(text=f"Look through the label suspects below: {count} {verb} wrong.")]


# ── undecided ────────────────────────────────────────────────────────────────


def _decide(told: Told, verdict: VerdictTold) -> list[Step]:
    """How many more images of which domain, the largest need of each domain."""
    undecided = _decided(verdict, Decision.INCONCLUSIVE)
    more: dict[str, int] = {}
    hopeless: list[CheckTold] = []
    for check in undecided:
        if check.kind == "labels":
            continue
        there, domain = _images(told, check), _domain(told, check)
        if check.needed is None or check.needed > OUT_OF_REACH * max(there, 100):
            hopeless.append(check)
        else:
            more[domain] = max(more.get(domain, 0), _held_out(check.needed - there))
    found = [
        Step(
            text=f"Hold out about {count:,} more images of {domain}: {1 - SELECT_SHARE:.0%} of "
            "them verify, and so many would decide if the rates stay as they are.",
            command=f"acclimate upload FOLDER --domain {domain} --role holdout",
        )
        for domain, count in more.items()
    ]
    if any(check.kind == "labels" for check in undecided):
        text = "Correct the labels of the verify images listed under label suspects and upload "
        found.insert(0, Step(text=text + "them again: what they show cannot be believed."))
    short_of = [check for check in undecided if check.kind == "coverage"]
    found += [Step(text=f"{c.message[:1].upper()}{c.message[1:]}.") for c in short_of]
    return found + [Step(text=_instead(told, check)) for check in hopeless]


def _instead(told: Told, check: CheckTold) -> str:
    """What to do where no reachable number of images decides."""
    many = "No number of" if check.needed is None else f"Only {check.needed:,} verify"
    wider = "or ask for wider limits (--guard exploratory)."
    remedy = {
        "NLL": "Train for fewer --epochs, let less move (--strategy head), ",
        "ECE": "Train for fewer --epochs, let less move (--strategy head), ",
    }.get(check.kind, "Give more or better training images, ")
    return f"{many} images would decide {subject(told, check)} at these rates. {remedy}{wider}"


def _held_out(verify: int) -> int:
    """How many images to hold out so that *verify* of them verify."""
    return max(1, math.ceil(verify / (1 - SELECT_SHARE)))


def _images(told: Told, check: CheckTold) -> int:
    """How many verify images the set of a check has; a check of classes counts only the worst."""
    domain = _domain(told, check)
    return next((one.images for one in told.sets if short(one.domain) == domain), check.n)


def _again(told: Told) -> Step:
    learned = short(told.job.source if told.job.kind == "BOOTSTRAP" else told.job.target)
    spec = told.job.spec
    if _forgot(told):
        more = max(20, 2 * spec.replay_per_class)
        spec = spec.model_copy(update={"replay_per_class": more})
    return Step(
        text="Then ask again. What was uploaded stays; only the new images are sent.",
        command=" ".join(("acclimate adapt", short(told.job.model), learned, *_options(spec))),
    )


def _options(spec: Spec) -> Iterator[str]:
    """The options of `acclimate adapt` that ask for *spec*; what is a default is not written."""
    for name, field in type(spec).model_fields.items():
        value, option = getattr(spec, name), f"--{name.replace('_', '-')}"
        if name == "variants":
            yield from (f"--variant {variant}" for variant in value)
        elif value != field.default:
            yield option if value is True else f"{option} {value}"


# ── words ────────────────────────────────────────────────────────────────────


def _decided(verdict: VerdictTold, decision: Decision) -> list[CheckTold]:
    return [check for check in verdict.checks if check.decision is decision]


def _forgot(told: Told) -> bool:
    """Whether an adaptation was rejected for what it forgot."""
    if told.verdict is None or told.job.kind != "ADAPT":
        return False
    rejecting = _decided(told.verdict, Decision.REJECT)
    kinds = ("accuracy", "creep")
    return any(check.kind in kinds and check.title != "target" for check in rejecting)


def _about(told: Told, verdict: VerdictTold, decision: Decision) -> str:
    """What the checks with this decision are about, each domain named once."""
    found = _decided(verdict, decision)
    return _listed(_domain(told, c) if c.title else f"the {subject(told, c)}" for c in found)


def _listed(names: Iterable[str]) -> str:
    """The names in a sentence, each once: "amazon, dslr and webcam"."""
    unique = list(dict.fromkeys(names))
    if len(unique) > 4:
        return f"{', '.join(unique[:3])} and {len(unique) - 3} more"
    return " and ".join(filter(None, [", ".join(unique[:-1]), *unique[-1:]]))


def subject(told: Told, check: CheckTold) -> str:
    """What a check is about: "accuracy on night", "size of the file"."""
    domain = _domain(told, check)
    return {
        "labels": f"labels of {domain} to {'judge by' if check.title else 'learn from'}",
        "size": "size of the file",
        "latency": "speed of the file",
        "classes": f"classes of {domain}, the worst one",
        "slices": f"slices of {domain}, the worst one",
        "creep": f"accuracy on {domain}, all versions together",
        "coverage": f"classes of {domain} without images",
    }.get(check.kind, f"{check.kind} on {domain}")


def _domain(told: Told, check: CheckTold) -> str:
    """The domain of the images that a check looked at; of the labels' if at none."""
    role = check.title.removesuffix(" incumbent").removesuffix(" candidate")
    learned = told.job.source if told.job.kind == "BOOTSTRAP" else told.job.target
    names = {"source": told.job.source, "target": learned, "": learned, "held-out": learned}
    return short(names.get(role) or role)


def _movement(told: Told, role: str) -> str:
    """How one set moved: "on night, right answers rise from 61.3% to 84.0%", or nothing."""
    found = told.of(role)
    if found is None or found.after is None:
        return ""
    domain, after = short(found.domain), f"{found.after:.1%}"
    if found.before is None:
        return f"on {domain}, {after} of the answers are right"
    would = "" if told.state == "SUCCEEDED" else "would "
    if f"{found.before:.1%}" == after:
        return f"on {domain}, right answers {would}stay at {after}"
    way = "rise" if found.after > found.before else "fall"
    return f"on {domain}, right answers {would}{way} from {found.before:.1%} to {after}"
