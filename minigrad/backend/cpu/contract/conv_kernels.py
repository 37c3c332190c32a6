"""The convolution kernels' sources.

The fast kernels never see padding, stride or dilation. `lower` writes a band of the image into
scratch so that every filter tap becomes a constant shift:

    S[c][tap column][row phase][row][column]

where `tap column` has the horizontal taps, stride and padding applied, and a vertical tap is a row
phase and a shift by whole rows. The pixels of a band are then one contiguous run for each tap,
whatever the width of the map, and a tile finds its rows in an offset table (no im2col: the copy is
as many times the image as the filter is wide, not as it is large).

Every kernel starts by unpacking its table; the lists of fields are the layouts of those tables.
"""

from __future__ import annotations

from minigrad.backend.cpu.vector.builder import ITEMSIZE, lanes

# A row table's entry for a row of padding: no byte offset can take this value.
NOWHERE = -(1 << 62)

LOWERING = """
    x image_bytes channel_bytes channels column_taps row_phases
    lowered_rows halo row_length band_rows bands out_rows
    row_table table_rows column_table mode step_bytes out_step
    scratch slot_bytes block units tasks direct lower
"""
FORWARD = f"""{LOWERING}
    k_extent packed panels offsets row_ranges out out_image_bytes out_channel out_channels
"""
PHASED = f"""{LOWERING}
    phases row_dilation column_dilation packed panels products product_bytes product_row
    out out_image_bytes out_channel_bytes out_row_bytes out_step_bytes
    out_channels out_height out_width
"""
PACK = "w out_step out_channels rows k_extent places packed"
PLANE = """
    x image_step channel_step row_step column_step w w_out w_channel w_row w_column
    out out_image out_channel out_row out_column out_channels group_channels channels
    rows columns height width row_meetings row_stride row_source
    column_meetings column_stride column_source planes plane_bytes units tasks
"""


def unpack(fields: str) -> str:
    """The lines that read a table: a variable for each field."""
    words = enumerate(fields.split())
    return "".join(f"    {field} = load_int64(table, {i})\n" for i, field in words)


def prologue(dtype: str, **made: tuple[str, *tuple[int, ...]]) -> str:
    """Module-level lines: the sizes of a vector, and the micro-kernels that a source uses.

    `made` gives each by its name in the source: its maker in `tiles`, and parameters after dtype.
    """
    lines = [f"LANES, ITEM = {lanes(dtype)}, {ITEMSIZE[dtype]}"]
    if made:
        lines.insert(0, "from minigrad.backend.cpu.contract import tiles")
    for name, (maker, *parameters) in made.items():
        lines.append(f"{name} = tiles.{maker}({', '.join(map(repr, (dtype, *parameters)))})")
    return "\n".join(lines) + "\n"


def _offset_tiles(dtype: str, rows: int, vectors: int, **others: tuple[str]) -> str:
    """The prologue of a kernel that multiplies by offset tables, with a tile for what is left."""
    wide, narrow = ("offset_tile", rows, vectors), ("offset_tile", rows, 1)
    text = prologue(dtype, tile=wide, narrow_tile=narrow, **others)
    return f"{text}ROWS, WIDTH = {rows}, {vectors} * LANES\n"


# A row at a time, element by element.
_COPY_ANY = """\
                    for i in range(rows):
                        offset = load_int64(row_offsets, i)
                        dst = plane + i * row_bytes
                        if clear or offset != NOWHERE:
                            for j in range(row_length):
                                store_$T(dst, j, 0.0)
                        if offset != NOWHERE:
                            src = start + offset
                            j = low
                            while j < high:
                                store_$T(dst, j, load_$T(src, 0))
                                src += step_bytes
                                j += out_step
"""
# A vector of all rows at a time. A row's last vector spills into the rows below, so vectors go from
# right to left and rows downwards: whatever is spilled on is written afterwards.
_COPY_VECTORS = """\
                    v = last
                    while v >= 0:
                        src = start + (v - low) * step_bytes
                        dst = plane + v * ITEM
                        if mode == 1:
                            copy_rows(dst, row_bytes, src, row_offsets, NOWHERE, clear, rows,
                                      low - v, high - v)
                        else:
                            copy_even_rows(dst, row_bytes, src, row_offsets, NOWHERE, clear, rows,
                                           low - v, high - v)
                        v -= LANES
"""


def lower(dtype: str) -> str:
    """Lower one band: called by address with (the caller's table, unit, scratch slot).

    mode 1: neighbouring columns are neighbours in memory; 2: they are two elements apart;
    0: anything, including inserted zeros (out_step > 1).
    """
    return f"""{prologue(dtype, copy_rows=("copy_windows", 1), copy_even_rows=("copy_windows", 2))}
NOWHERE = {NOWHERE}


def kernel(table, unit, slot):
{unpack(LOWERING)}
    first = unit % bands * band_rows
    rows = min(band_rows, out_rows - first) + halo
    row_bytes = row_length * ITEM
    plane_bytes = lowered_rows * row_bytes
    image = x + unit // bands * image_bytes
    plane = scratch + slot * slot_bytes
    last = (row_length - 1) // LANES * LANES
    # Rows of padding are the same in every whole image: its slot's first image has cleared them.
    earlier = unit - units * (slot // block) // tasks - block
    clear = 1 if bands > 1 or earlier < 0 else 0
    for c in range(channels):
        for tap in range(column_taps):
            low = load_int64(column_table, 3 * tap)
            high = load_int64(column_table, 3 * tap + 1)
            start = image + c * channel_bytes + load_int64(column_table, 3 * tap + 2)
            for phase in range(row_phases):
                row_offsets = row_table + 8 * (phase * table_rows + first)
                if mode == 0:
{_COPY_ANY.replace("$T", dtype)}
                else:
{_COPY_VECTORS}
                plane += plane_bytes
"""


def pack(dtype: str) -> str:
    """packed[panel][k][row] from weights of any strides.

    `places` holds where each k is in an output channel's weights, in elements.
    """
    return f"""{prologue(dtype)}

def kernel(table, begin, end):
{unpack(PACK)}
    for panel in range(begin, end):
        for i in range(rows):
            o = panel * rows + i
            at = panel * k_extent * rows + i
            for k in range(k_extent):
                if o < out_channels:
                    value = load_{dtype}(w, o * out_step + load_int64(places, k))
                    store_{dtype}(packed, at, value)
                else:
                    store_{dtype}(packed, at, 0.0)
                at += rows
"""


BLOCKS = """\
    for task in range(begin, end):
        unit = units * task // tasks
        stop = units * (task + 1) // tasks
        while unit < stop:
            count = min(block, stop - unit)
"""
LOWER_BLOCK = """\
            if direct == 0:
                for g in range(count):
                    call_kernel(lower, table, unit + g, task * block + g)
"""


def forward(dtype: str, rows: int, vectors: int) -> str:
    """out[image, o, pixel] = packed weights times lowered rows.

    A panel of weights stays in the first cache, the block's lowered images in the second.
    `row_ranges` has for each output row the range of k (row tap, column tap, channel) in which it
    meets x: filter rows that fall on padding in all rows of a tile are not multiplied.
    """
    return f"""{_offset_tiles(dtype, rows, vectors)}


def kernel(table, begin, end):
{unpack(FORWARD)}
{BLOCKS}
{LOWER_BLOCK}
            for panel in range(panels):
                a = packed + panel * k_extent * ROWS * ITEM
                for g in range(count):
                    first = (unit + g) % bands * band_rows
                    image = (unit + g) // bands
                    pixels = min(band_rows, out_rows - first) * row_length
                    if direct == 0:
                        b = scratch + (task * block + g) * slot_bytes
                    else:
                        b = x + image * image_bytes + first * row_length * ITEM
                    c = out + image * out_image_bytes
                    c += (panel * ROWS * out_channel + first * row_length) * ITEM
                    valid = out_channels - panel * ROWS
                    q = 0
                    while q < pixels:
                        width = WIDTH if pixels - q > WIDTH - LANES else LANES
                        # The last tile overlaps the one before, so that it is a whole one, too.
                        at = max(0, min(q, pixels - width))
                        top = first + at // row_length
                        bottom = first + (min(at + width, pixels) - 1) // row_length
                        k = load_int64(row_ranges, 2 * bottom)
                        products = load_int64(row_ranges, 2 * top + 1) - k
                        if width == WIDTH:
                            tile(products, a + k * ROWS * ITEM, b + at * ITEM, offsets + 8 * k,
                                 c + at * ITEM, out_channel, pixels - at, valid, 0)
                        else:
                            narrow_tile(products, a + k * ROWS * ITEM, b + at * ITEM,
                                        offsets + 8 * k, c + at * ITEM, out_channel,
                                        pixels - at, valid, 0)
                        q += width
            unit += count
"""


# The products of a row phase, a row for each column phase and output channel.
_MULTIPLY_PHASES = """\
                    for b_phase in range(column_dilation):
                        entry = phases + 24 * (a_phase * column_dilation + b_phase)
                        k_extent = load_int64(entry, 0)
                        offsets = load_int64(entry, 1)
                        a = packed + load_int64(entry, 2) + panel * k_extent * ROWS * ITEM
                        c = base + b_phase * ROWS * product_row * ITEM
                        q, left = 0, band * row_length
                        while left > 0:
                            if left > WIDTH - LANES:
                                tile(k_extent, a, s + q * ITEM, offsets, c + q * ITEM,
                                     product_row, left, ROWS, 0)
                                q += WIDTH
                                left -= WIDTH
                            else:
                                narrow_tile(k_extent, a, s + q * ITEM, offsets, c + q * ITEM,
                                            product_row, left, ROWS, 0)
                                q += LANES
                                left -= LANES
"""
# Their way into the output, whose neighbouring columns belong to different phases.
_SCATTER_PHASES = """\
                    for i in range(min(ROWS, out_channels - panel * ROWS)):
                        plane = out + (unit + g) // bands * out_image_bytes
                        plane += (panel * ROWS + i) * out_channel_bytes
                        for r in range(band):
                            h = a_phase + row_dilation * (first + r)
                            if h >= out_height:
                                break
                            dst = plane + h * out_row_bytes
                            src = base + (i * product_row + r * row_length) * ITEM
                            odd = ROWS * product_row * ITEM
                            if column_dilation == 2 and out_step_bytes == ITEM:
                                for v in range(0, row_length, LANES):
                                    interleave(dst + 2 * v * ITEM, src + v * ITEM,
                                               src + odd + v * ITEM, out_width - 2 * v)
                            else:
                                for w in range(out_width):
                                    value = load_$T(
                                        src + w % column_dilation * odd, w // column_dilation)
                                    store_$T(dst + w * out_step_bytes, 0, value)
"""


def phased(dtype: str, rows: int, vectors: int) -> str:
    """Convolution of an input with inserted zeros, phase by phase, so no zero is multiplied.

    Output pixels of one residue (a, b) modulo the dilation use one subset of the taps: each phase
    is a stride-1 problem on the same lowered input. A row phase's products go to a small buffer and
    are interleaved from there. `phases` holds (k_extent, offsets, byte offset of the packed
    weights) for each (a, b); `out_height` x `out_width` is the real output.
    """
    return f"""{_offset_tiles(dtype, rows, vectors, interleave=("interleave",))}


def kernel(table, begin, end):
{unpack(PHASED)}
{BLOCKS}
{LOWER_BLOCK}
            for panel in range(panels):
                for work in range(count * row_dilation):
                    g, a_phase = work // row_dilation, work % row_dilation
                    first = (unit + g) % bands * band_rows
                    band = min(band_rows, out_rows - first)
                    s = scratch + (task * block + g) * slot_bytes
                    base = products + task * product_bytes
{_MULTIPLY_PHASES}
{_SCATTER_PHASES.replace("$T", dtype)}
            unit += count
"""


def plane(dtype: str, itemsize: int) -> str:
    """Any convolution of any dtype, one output plane at a time, by rows of multiply-adds.

    A table of meetings has (count, first output, first input) for each tap of an axis; the two
    strides of an axis are common to its taps. Steps are in elements.
    """
    product, zero = "total + weight * value", "0"
    if dtype == "bool":
        product, zero = "total | (weight & value)", "False"
    body = f"""\
total = load_{dtype}(dst, j * column_stride)
value = load_{dtype}(src, j * source_step)
store_{dtype}(dst, j * column_stride, {product})"""
    strided = body.replace("\n", "\n" + " " * 28)
    dense = strided.replace("j * column_stride", "j").replace("j * source_step", "j")
    return f"""
def kernel(table, begin, end):
{unpack(PLANE)}
    source_step = column_source * column_step
    for task in range(begin, end):
        sums = planes + task * plane_bytes
        for unit in range(units * task // tasks, units * (task + 1) // tasks):
            n, o = unit // out_channels, unit % out_channels
            for i in range(height * width):
                store_{dtype}(sums, i, {zero})
            image = n * image_step + o // group_channels * channels * channel_step
            for tap in range(channels * rows * columns):
                c, kh, kw = tap // (rows * columns), tap // columns % rows, tap % columns
                at = o * w_out + c * w_channel + kh * w_row + kw * w_column
                weight = load_{dtype}(w, at)
                row_at = row_meetings + 24 * kh
                column_at = column_meetings + 24 * kw
                count = load_int64(column_at, 0)
                dst = load_int64(row_at, 1) * width + load_int64(column_at, 1)
                dst = sums + dst * {itemsize}
                src = image + c * channel_step + load_int64(row_at, 2) * row_step
                src = x + (src + load_int64(column_at, 2) * column_step) * {itemsize}
                for r in range(load_int64(row_at, 0)):
                    if column_stride == 1 and source_step == 1:
                        for j in range(count):
                            {dense}
                    else:
                        for j in range(count):
                            {strided}
                    dst += row_stride * width * {itemsize}
                    src += row_source * row_step * {itemsize}
            for h in range(height):
                dst = out + (n * out_image + o * out_channel + h * out_row) * {itemsize}
                for j in range(width):
                    store_{dtype}(dst, j * out_column, load_{dtype}(sums, h * width + j))
"""
