"""Colours of experts, the same in all pictures, and maps of the experts of tokens."""

import numpy as np

# Okabe and Ito, "Color Universal Design" (2008): told apart by people with any colour vision.
EXPERT_COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#4d4d4d"
)  # fmt: skip


def expert_colours(experts: int) -> np.ndarray:
    """Return a colour for each of M experts, uint8 [M, 3].

    Up to eight experts get named colours that anyone can tell apart; more get those of a sequential
    colour map.

    Example:
      >>> expert_colours(2).tolist()
      [[0, 114, 178], [230, 159, 0]]
    """
    if experts <= len(EXPERT_COLOURS):
        chosen = [list(bytes.fromhex(colour[1:])) for colour in EXPERT_COLOURS[:experts]]
        return np.array(chosen, np.uint8).reshape(experts, 3)
    from matplotlib import colormaps  # Imported here because it is slow.

    colours = np.asarray(colormaps["viridis"](np.linspace(0, 1, experts)))
    return np.round(255 * colours[:, :3]).astype(np.uint8)


def paint_experts(chosen: np.ndarray, grid: tuple[int, int], experts: int) -> np.ndarray:
    """Paint the expert of each token as a picture with one pixel per token.

    Args:
      chosen: int [B, N], the expert of each token; M, which is painted white, for a token without
        expert, such as one that has halted. If there are more tokens than places, such as
        those of a first frame, the last ones are those of the picture.
      grid: rows and columns of tokens.
      experts: number M of experts.

    Returns:
      uint8 [B, rows, columns, 3].

    Example:
      >>> paint_experts(np.array([[1, 0, 1]]), (1, 2), 2).tolist()
      [[[[0, 114, 178], [230, 159, 0]]]]
    """
    rows, columns = grid
    of_picture = chosen[:, -rows * columns :].reshape(-1, rows, columns)
    white = np.full((1, 3), 255, np.uint8)
    return np.concatenate([expert_colours(experts), white])[of_picture]
