/* Whether the tiles may be used is asked for once, when the library is loaded. */
#include "tiles.h"

#if HAS_TILES
int tiles_allowed;

__attribute__((constructor)) static void ask(void) { tiles_allowed = ask_for_tiles(); }
#endif
