// The loops of loops.h for one instruction set, whose name CMakeLists.txt passes as VOCABSEG_VARIANT.
//
// No templates of the C++ library are instantiated here: the linker keeps one copy of such functions for all units, and
// that could be the one with instructions that an older processor lacks.
#include "loops.h"

#include "loops_compose.h"
#include "loops_crops.h"
#include "loops_masks.h"
#include "loops_resize.h"

#define VOCABSEG_JOIN(a, b) a##b
#define VOCABSEG_TABLE(name) VOCABSEG_JOIN(loops_, name)
#define VOCABSEG_TEXT(name) VOCABSEG_QUOTE(name)
#define VOCABSEG_QUOTE(name) #name

namespace vocabseg {

extern const Loops VOCABSEG_TABLE(VOCABSEG_VARIANT);
const Loops VOCABSEG_TABLE(VOCABSEG_VARIANT) = {
    VOCABSEG_TEXT(VOCABSEG_VARIANT),
    mix_columns,
    mix_rows,
    mix_rows_sigmoid,
    count_inside,
    highest,
    sample_tile,
    block_scores,
    tile_bounds,
    highest_bounds,
    contest,
    cut_row,
    matte_row,
    cubic_columns,
    cubic_rows,
    triangle_columns,
    triangle_rows,
};

}  // namespace vocabseg
