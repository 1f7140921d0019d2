"""The sections of the report: a question, how to read its figure, and its table."""

import dataclasses
from collections.abc import Callable

from tp_jax.analysis import tables
from tp_jax.analysis.document import Document
from tp_jax.analysis.tables import Table


@dataclasses.dataclass(frozen=True)
class Section:
    """One question about the gate.

    Attributes:
      figure: name of its figure in `figures.FIGURES`, and anchor in the page.
      question: the heading.
      reading: one sentence on how to read the figure.
      table: makes its table.
    """

    figure: str
    question: str
    reading: str
    table: Callable[[Document], Table | None]


SECTIONS = (
    Section(
        "information",
        "What does the choice of an expert depend on?",
        "A bar is how much a variable tells about the expert, and its black mark is what the same "
        "data give after shuffling, so a bar that ends at its mark is chance.",
        tables.information_table,
    ),
    Section(
        "use",
        "Which expert is used at which timestep?",
        "The height of a colour is the share of tokens that take that expert; sampling runs from "
        "left to right, and each column is a latent step.",
        tables.use_table,
    ),
    Section(
        "effective_experts",
        "Are the experts used evenly?",
        "A dot on the dotted line means that all experts are used equally, a dot at 1 that one "
        "expert takes every token; dots of one block are its latent steps.",
        tables.effective_table,
    ),
    Section(
        "entropy",
        "How sure is the gate?",
        "At 0 the gate is certain, and on the dotted line all experts are equally probable.",
        tables.entropy_table,
    ),
    Section(
        "kept",
        "Do tokens keep their expert from one latent step to the next?",
        "A solid line is the share of tokens that keep their expert, and the dashed line of the "
        "same colour is the share if both latent steps chose independently with the same use.",
        tables.kept_table,
    ),
    Section(
        "use_by_group",
        "Do classes or words take different experts?",
        "A row is a class or word, a column an expert (repeated for each latent step where there "
        "is room); purple means that its tokens take the expert more often than average, orange "
        "less often. Of many rows, those that differ most are shown.",
        tables.group_table,
    ),
    Section(
        "use_by_place",
        "Does the place in the picture matter?",
        "Each map is the picture's grid of tokens; where it is purple, the expert is used more "
        "often than its average, and where it is orange, less often. Of two experts one is shown, "
        "as the other's map is its negative; of many blocks, six.",
        tables.place_table,
    ),
    Section(
        "similarity",
        "Do the experts do different things?",
        "A cell compares two experts on the same tokens: at 1 their outputs point in the same "
        "direction, at 0 they are unrelated.",
        tables.similarity_table,
    ),
    Section(
        "latent_steps",
        "At which timesteps do tokens take more latent steps?",
        "The height is the mean number of latent steps that a token takes before it halts; on the "
        "dotted line no token halts.",
        tables.latent_steps_table,
    ),
    Section(
        "latent_steps_by_place",
        "Where in the picture do tokens take more latent steps?",
        "Each map is the picture's grid of tokens; the lighter a place, the more latent steps its "
        "tokens take on average. Of many blocks, six are shown.",
        tables.latent_steps_by_place_table,
    ),
    Section(
        "moves",
        "How far do tokens move at each latent step?",
        "The height is the length of the move of ã at that latent step, relative to the length of "
        "ã before it.",
        tables.moves_table,
    ),
    Section(
        "ratios",
        "Do the tokens converge?",
        "Below the dotted line each move is shorter than the one before, so more latent steps "
        "would change less and less.",
        tables.ratios_table,
    ),
    Section(
        "together",
        "Do all tokens move alike?",
        "At 1 all tokens of a sample move in the same direction over the latent steps, at 0 each "
        "moves in its own.",
        tables.together_table,
    ),
    Section(
        "trajectories",
        "Which way do tokens go? (the paper's Figure 3)",
        "Each line follows one token from ã⁰ (grey dot) over the latent steps, in the plane of the "
        "two main directions; a piece has the colour of the expert that made the move. Short "
        "moves are enlarged, as the panel says; of many blocks, six are shown.",
        tables.trajectory_table,
    ),
    Section(
        "interventions",
        "What changes the pictures?",
        "A bar is the mean difference of the pixels to the unchanged model on the same noise; a "
        "dot, where the task has a score, is the score of the changed model. In the pictures "
        "below, the first row is the unchanged model, the second the changed one, and the third "
        "is darker where they differ, and black from 32 grey levels on.",
        tables.intervention_table,
    ),
)
