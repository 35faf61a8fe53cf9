// The plain form of the attention ring, which the fast ones are held against.
#pragma once

#include "speechssm/ring_api.h"

namespace speechssm {
void ring_reference(const speechssm_ring& call);
}
