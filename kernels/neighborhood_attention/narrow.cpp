#define VANTAGE_WIDTH narrow
#define VANTAGE_MAX_LANES 8
#include "sliding_calls.h"
