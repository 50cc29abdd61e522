"""Texture and surface objects of arrays: 64-bit handles as of cudaCreateTextureObject, cudaCreateSurfaceObject."""

from __future__ import annotations

import numpy as np

from . import isa
from . import state as s
from .arrays import DeviceArray
from .errors import InputError

ADDRESSES = {"clamp": s.CLAMP, "border": s.BORDER, "wrap": s.WRAP, "mirror": s.MIRROR}
TYPES = {
    "uint8": isa.U8,
    "int8": isa.S8,
    "uint16": isa.U16,
    "int16": isa.S16,
    "uint32": isa.U32,
    "int32": isa.S32,
    "float16": isa.F16,
    "float32": isa.F32,
}


def texture(
    array: DeviceArray,
    *,
    channels: int = 1,
    layered: bool = False,
    address: str = "clamp",
    normalized: bool = False,
    read: str = "element",
    filter: str = "point",
) -> int:
    """The handle of a texture object that reads an array. Pass it to a kernel as a `cudaTextureObject_t`.

    The texture has one level. A kernel that writes to the array while it reads the texture is reported
    (`not_coherent`).

    Parameters
    ----------
    array : DeviceArray
        The array: [width], [height, width] or [depth, height, width] elements, of 8 to 32 bits. It must stay allocated.
    channels : int
        The channels of an element: 1, 2 or 4. If more than 1, they are the array's last dimension.
    layered : bool
        Whether the first dimension counts layers (`tex1DLayered`, `tex2DLayered`). Six square layers with normalized
        coordinates are the faces of a cube map too (`texCubemap`).
    address : str
        What a coordinate outside the array means: ``"clamp"``, ``"border"`` (the value is 0), ``"wrap"`` or
        ``"mirror"``. As on GPUs, the last two need normalized coordinates, and mean ``"clamp"`` otherwise.
    normalized : bool
        Whether coordinates from 0 to 1 cover the array.
    read : str
        ``"element"``, or ``"normalized"``: integers of 8 and 16 bits become floats from 0 to 1, or from -1 to 1.
    filter : str
        ``"point"``: the nearest element. ``"linear"``: float coordinates give the mean of the 2, 4 or 8 elements around
        them, by weights of 8 bits after the point. It needs floats: an array of them, or ``read="normalized"``.

    Returns
    -------
    int
        The handle, for this machine alone.

    Raises
    ------
    InputError
        The array has a form that textures do not have, or cannot be filtered so.

    Examples
    --------
    >>> import numpy as np
    >>> import ptxsim
    >>> image = ptxsim.Machine().device(0).array(np.zeros((64, 64), np.float32))
    >>> handle = ptxsim.texture(image, address="border")
    """
    if filter not in ("point", "linear"):
        raise InputError(f"filter must be 'point' or 'linear', got {filter!r}")
    if address not in ADDRESSES:
        raise InputError(f"address must be one of {', '.join(ADDRESSES)}, got {address!r}")
    if read not in ("element", "normalized"):
        raise InputError(f"read must be 'element' or 'normalized', got {read!r}")
    if read == "normalized" and (array.dtype.kind not in "iu" or array.dtype.itemsize > 2):
        raise InputError(f"read='normalized' needs integers of 8 or 16 bits, got {array.dtype}")
    if filter == "linear" and read == "element" and array.dtype.kind != "f":
        raise InputError(f"filter='linear' needs floats, got {array.dtype}: use read='normalized' (8 and 16 bits only)")
    row = described(array, channels, layered)
    row[s.X_LINEAR] = int(filter == "linear")
    row[s.X_MODE], row[s.X_NORMALIZED] = ADDRESSES[address], int(normalized)
    row[s.X_FLOATS] = int(read == "normalized")
    return kept(array, row)


def surface(array: DeviceArray, *, channels: int = 1, layered: bool = False) -> int:
    """The handle of a surface object that reads and writes an array. Pass it to a kernel as a `cudaSurfaceObject_t`.

    Parameters
    ----------
    array : DeviceArray
        As for `texture`.
    channels : int
        As for `texture`.
    layered : bool
        As for `texture`.

    Returns
    -------
    int
        The handle, for this machine alone.

    Raises
    ------
    InputError
        The array has a form that surfaces do not have.

    Examples
    --------
    >>> import numpy as np
    >>> import ptxsim
    >>> image = ptxsim.Machine().device(0).array(np.zeros((64, 64, 4), np.uint8))
    >>> handle = ptxsim.surface(image, channels=4)
    """
    row = described(array, channels, layered)
    row[s.X_KIND] = s.SURFACE
    return kept(array, row)


def described(array: DeviceArray, channels: int, layered: bool) -> np.ndarray:
    """[state.X_COUNT] int64: the description of a texture of an array."""
    if array.dtype.name not in TYPES:
        raise InputError(f"the array's type must be one of {', '.join(TYPES)}, got {array.dtype}")
    if channels not in (1, 2, 4):
        raise InputError(f"channels must be 1, 2 or 4, got {channels!r}")
    shape, strides = array.shape, array.strides
    if channels > 1:
        if not shape or shape[-1] != channels or strides[-1] != array.dtype.itemsize:
            raise InputError(f"the array's last dimension must be its {channels} channels, got shape {shape}")
        shape, strides = shape[:-1], strides[:-1]
    most = 3
    if not 1 + layered <= len(shape) <= most:
        raise InputError(f"a texture has 1 to {most} dimensions, layers included, got shape {array.shape}")
    if strides[-1] != channels * array.dtype.itemsize:
        raise InputError(f"the elements of a row must lie next to each other, got strides {array.strides}")
    row = np.zeros(s.X_COUNT, np.int64)
    row[s.X_KIND], row[s.X_ADDRESS] = s.TEXTURE, array.ptr
    row[s.X_TYPE], row[s.X_CHANNELS], row[s.X_LAYERED] = TYPES[array.dtype.name], channels, int(layered)
    row[s.X_DIMENSIONS] = len(shape) - layered
    sizes, steps = [*shape[::-1]], [*strides[::-1]]
    if layered:
        sizes, steps = (
            sizes[:-1] + [1] * (3 - len(sizes)) + sizes[-1:],
            steps[:-1] + [0] * (3 - len(steps)) + steps[-1:],
        )
    row[s.X_SIZES : s.X_SIZES + 3] = sizes + [1] * (3 - len(sizes))
    row[s.X_STRIDES : s.X_STRIDES + 3] = steps + [0] * (3 - len(steps))
    return row


def kept(array: DeviceArray, row: np.ndarray) -> int:
    """Add a description to the machine's table. Returns its handle."""
    machine = array.machine
    with machine.lock:
        old = machine.tables.get("textures", np.zeros((0, s.X_COUNT), np.int64))
        machine.table("textures", (len(old) + 1, s.X_COUNT), s.TEXTURES)[:] = [*old, row]
        machine.x[s.TEXTURE_COUNT] = len(old) + 1
        return isa.TEXTURE_START + len(old)
