"""The summary of a report: sentences that follow from the numbers by fixed rules.

The thresholds are ours. They are constants of this file, and the report shows the numbers that they
were applied to.
"""

import dataclasses

import numpy as np

from tp_jax.analysis.document import (
    Document,
    above_chance,
    information,
    kept_by_chance,
    mean,
    part,
    parts,
    similarities,
    thinking_off,
    variable_name,
)

# Information below this many bits is called none, however certain it is.
SMALL_BITS = 0.01
# A variable is minor if another tells more than this many times as much about the expert.
DOMINANT = 2.0
# One expert takes all tokens if the effective number of experts is below this.
COLLAPSED = 1.05
# Use is even if (effective number - 1) / (experts - 1) is at least the first, and uneven below the
# second.
EVEN, UNEVEN = 0.8, 0.5
# Shares of tokens that keep their expert: hardly any change above the first, many below the second.
STEADY, CHANGING = 0.95, 0.7
# Mean differences of pictures in grey levels (0 … 255): invisible below the first, clear from the
# second.
INVISIBLE, CLEAR = 1.0, 5.0
# Experts are copies if the mean cosine of their ΔV is at least this.
COPIES = 0.95


@dataclasses.dataclass(frozen=True)
class Finding:
    """One answer of the summary.

    Attributes:
      question: in plain words.
      answer: one or more sentences.
      section: key of the section whose figure shows the numbers.
    """

    question: str
    answer: str
    section: str


def find(document: Document) -> list[Finding]:
    """Return the answers to the questions for which the document has numbers."""
    rules = (_depends, _even, _sure, _changes, _moves, _copies, _matters)
    return [finding for rule in rules if (finding := rule(document)) is not None]


def _list(names: list[str], last: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


@dataclasses.dataclass(frozen=True)
class _Answer:
    """The answer for one block.

    Attributes:
      text: with {0}, {1} … in the place of numbers.
      values: the numbers.
      form: how to write them, as in a format specification.
    """

    text: str
    values: tuple[float, ...] = ()
    form: str = "z.2f"


def _by_answer(answers: dict[str, _Answer]) -> str:
    """Join the answers of the blocks; blocks with the same text share a sentence and a range."""
    blocks: dict[str, list[str]] = {}
    for block, answer in answers.items():
        blocks.setdefault(answer.text, []).append(block)
    sentences = []
    for text, names in blocks.items():
        form = answers[names[0]].form
        values = zip(*(answers[name].values for name in names), strict=True)
        sentence = text.format(*(_range(found, form) for found in values))
        if len(answers) == 1:
            sentences.append(f"{_capital(sentence)}.")
        elif len(blocks) == 1:
            where = "both blocks" if len(answers) == 2 else f"all {len(answers)} blocks"
            sentences.append(f"In {where}: {sentence}.")
        else:
            plural = "" if len(names) == 1 else "s"
            sentences.append(f"Block{plural} {_list(names)}: {sentence}.")
    return " ".join(sentences)


def _range(values: tuple[float, ...], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _depends(document: Document) -> Finding | None:
    """Tell whether routing follows the content or only the timestep."""
    values = information(document)
    answers = {block: _Answer(depends_on(document, block)) for block in values}
    if not answers:
        return None
    numbers = ""
    if len(values) == 1:
        found = next(iter(values.values()))
        numbers = " Mutual information with the expert above chance, in bits: " + ", ".join(
            f"{variable_name(document, name)} {above_chance(entry):.2f}"
            for name, entry in found.items()
        )
        numbers += "."
    return Finding(
        "Does routing follow the content or only the timestep?",
        _by_answer(answers) + numbers,
        "information",
    )


def depends_on(document: Document, block: str) -> str:
    """Return in words which variables the expert of a block depends on.

    A variable counts if its plug-in information is above the 97.5 % quantile of the permutations
    and at least `SMALL_BITS` above their mean.
    """
    effective = part(document, block, "effective_experts")
    if effective is not None and np.nanmax(effective) < COLLAPSED:
        return "one expert takes nearly all tokens, so there is no routing to explain"
    found = information(document)[block]
    counted = {
        name: above_chance(entry)
        for name, entry in found.items()
        if above_chance(entry) >= SMALL_BITS
        and not (entry.get("permuted_high") is not None and entry["bits"] <= entry["permuted_high"])
    }
    if not counted:
        return "the expert depends on none of the measured variables; it looks random"
    highest = max(counted.values())
    names = {name: f"the {variable_name(document, name)}" for name in found}
    order = sorted(counted, key=lambda name: -counted[name])
    main = [names[name] for name in order if counted[name] * DOMINANT >= highest]
    rest = [names[name] for name in order if counted[name] * DOMINANT < highest]
    others = [names[name] for name in found if name not in counted]
    if rest:
        return f"routing follows mostly {_list(main)}, and less {_list(rest)}{_not(others)}"
    if len(main) == 1:
        return f"routing follows only {main[0]}"
    return f"routing follows {_list(main)}{_not(others)}"


def _not(names: list[str]) -> str:
    return f", but not {_list(names, 'or')}" if names else ""


def _even(document: Document) -> Finding | None:
    """Tell whether the experts are used evenly, and which are dead."""
    experts = document["run"]["experts"]
    answers: dict[str, _Answer] = {}
    for block, effective in parts(document, "effective_experts").items():
        value = mean(effective) or 0.0
        if experts == 1:
            answers[block] = _Answer("there is one expert")
            continue
        share = (value - 1) / (experts - 1)
        if value < COLLAPSED:
            text = "no: one expert takes nearly all tokens"
        elif share >= EVEN:
            text = "yes"
        else:
            text = "not quite" if share >= UNEVEN else "no: few experts take most tokens"
        dead = document["blocks"][block].get("dead_experts") or []
        always = set.intersection(*map(set, dead)) if dead else set()
        ending = f"; {_experts(always)} dead at every latent step" if always else ""
        numbers = f" (effective number {{0}} of {experts})"
        answers[block] = _Answer(text + numbers + ending, (value,), ".1f")
    if not answers:
        return None
    return Finding("Are the experts used evenly?", _by_answer(answers), "effective_experts")


def _experts(numbers: set[int]) -> str:
    if len(numbers) > 6:
        return f"{len(numbers)} experts are"
    names = [str(m) for m in sorted(numbers)]
    return f"expert {names[0]} is" if len(names) == 1 else f"experts {_list(names)} are"


def _sure(document: Document) -> Finding | None:
    """Tell how certain the gate is."""
    experts = document["run"]["experts"]
    answers: dict[str, _Answer] = {}
    if experts < 2:
        return None
    for block, entropy in parts(document, "entropy").items():
        share = (mean(entropy) or 0.0) / np.log(experts)
        text = "hardly" if share > 0.9 else "very" if share < 0.3 else "somewhat"
        sentence = f"{text}; its entropy is {{0}} of that of even odds"
        answers[block] = _Answer(sentence, (share,), ".0%")
    if not answers:
        return None
    return Finding("How sure is the gate of its choice?", _by_answer(answers), "entropy")


def _changes(document: Document) -> Finding | None:
    """Tell whether tokens change their expert over the latent steps."""
    question = "Does the gate change its mind over latent steps?"
    if document["run"]["latent_steps"] == 1:
        return Finding(question, "There is one latent step, so it can't.", "left_out")
    answers: dict[str, _Answer] = {}
    for block, kept in parts(document, "kept").items():
        share = mean(kept) or 0.0
        text = "hardly" if share >= STEADY else "often" if share < CHANGING else "sometimes"
        chance = mean(kept_by_chance(document, block))
        ending = "" if chance is None else "; {1} would by chance"
        sentence = f"{text}: {{0}} of tokens keep their expert from one latent step to the next"
        values = (share,) if chance is None else (share, chance)
        answers[block] = _Answer(sentence + ending, values, ".0%")
    return Finding(question, _by_answer(answers), "kept") if answers else None


def _moves(document: Document) -> Finding | None:
    """Tell whether the moves shrink over the latent steps."""
    answers: dict[str, _Answer] = {}
    for block, ratios in parts(document, "ratios").items():
        last = mean(ratios[:, -1])
        if last is None:
            continue
        text = "yes, moves shrink" if last < 0.9 else "no, moves grow" if last > 1.1 else "no"
        sentence = f"{text} (the last move is {{0}} times as long as the one before)"
        answers[block] = _Answer(sentence, (last,))
    return Finding("Do the tokens converge?", _by_answer(answers), "ratios") if answers else None


def _copies(document: Document) -> Finding | None:
    """Tell whether the experts compute the same."""
    answers: dict[str, _Answer] = {}
    for block, found in similarities(document).items():
        if "v" not in found or len(found["v"]) < 2:
            continue
        pairs = found["v"][np.triu_indices(len(found["v"]), 1)]
        value = mean(pairs)
        if value is None:
            continue
        text = "no, they nearly agree" if value >= COPIES else "yes"
        answers[block] = _Answer(f"{text} (mean cosine of ΔV between experts {{0}})", (value,))
    if not answers:
        return None
    return Finding("Do the experts do different things?", _by_answer(answers), "similarity")


def _matters(document: Document) -> Finding | None:
    """Tell how much pictures and score change without thinking and by other interventions."""
    off = thinking_off(document)
    if off is None or off.get("difference") is None:
        return None
    difference = off["difference"]
    if difference < INVISIBLE:
        text = "Hardly: without thinking, pixels differ by"
    elif difference < CLEAR:
        text = "A little: without thinking, pixels differ by"
    else:
        text = "Yes: without thinking, pixels differ by"
    answer = f"{text} {difference:.2f} of 255 grey levels on average."
    others = [one for one in document["interventions"] if one is not off and one.get("difference")]
    if others:
        most = max(others, key=lambda one: one["difference"])
        answer += (
            f" Of the other interventions, “{most['name']}” changes the pictures most, by "
            f"{most['difference']:.2f}."
        )
    return Finding(
        "Does thinking change the picture?", answer + _change_of_score(document), "interventions"
    )


def _change_of_score(document: Document) -> str:
    """Tell by which intervention the task's score changes most; "" where there is no score."""
    scored = {one["name"]: one for one in document["interventions"] if one.get("score") is not None}
    unchanged = scored.pop("unchanged", None)
    if unchanged is None or not scored:
        return ""
    name, most = max(scored.items(), key=lambda item: abs(item[1]["score"] - unchanged["score"]))
    return (
        f" The score ({unchanged['score_name']}) is {unchanged['score']:.0%}; “{name}” changes it "
        f"most, to {most['score']:.0%}."
    )
