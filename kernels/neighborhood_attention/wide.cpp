#define VANTAGE_WIDTH wide
#include "sliding_calls.h"
