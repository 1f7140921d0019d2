"""The kinds of values that many fields and flags have."""

from typing import Annotated

from tp_jax.values.allowed import Choice, Range, Text
from tp_jax.values.texts import read_path, read_source, read_word

# Steps and the indices of samples are int32 on devices.
INT32 = 2**31 - 1
# A number of steps, or another number without a bound of its own.
Count = Annotated[int, Range(1, INT32)]
# A count that may be 0, which switches something off or means all.
CountOrZero = Annotated[int, Range(0, INT32)]
# A width, side or number of layers. Larger ones can't be meant: no device holds them.
Size = Annotated[int, Range(1, 2**16)]
SizeOrZero = Annotated[int, Range(0, 2**16)]
# A number T of latent steps.
LatentSteps = Annotated[int, Range(1, 1000)]
# A number of images in one batch or file. Memory is needed for each.
Images = Annotated[int, Range(1, 2**24)]
Seed = Annotated[int, Range(0, 2**32 - 1)]

Number = Annotated[float, Range()]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
# A probability or share.
Share = Annotated[float, Range(0, 1)]
# A decay: 1 would never forget.
Decay = Annotated[float, Range(0, 1, below=True)]

Dtype = Annotated[str, Choice("float32", "bfloat16")]
# A file or folder, local or remote; "" is none.
Path = Annotated[str, Text(read_path)]
# A file or folder that is only read: also hf://OWNER/NAME.
Source = Annotated[str, Text(read_source)]
# A name, such as that of a split; "" is none.
Word = Annotated[str, Text(read_word)]
