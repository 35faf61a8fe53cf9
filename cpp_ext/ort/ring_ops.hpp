// The attention ring's ops, added to the domain that rglru_ops.cpp registers.
#pragma once

#include "ort_abi.hpp"

namespace speechssm {
ort::Status* add_ring_ops(ort::Api api, ort::CustomOpDomain* domain);
}
