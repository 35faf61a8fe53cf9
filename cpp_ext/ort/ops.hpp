// Ops of other files, added to the domain that rglru_ops.cpp registers.
#pragma once

#include "ort_abi.hpp"

namespace speechssm {
ort::Status* add_ring_ops(ort::Api api, ort::CustomOpDomain* domain);
ort::Status* add_linear_ops(ort::Api api, ort::CustomOpDomain* domain);
ort::Status* add_recurrent_ops(ort::Api api, ort::CustomOpDomain* domain);
ort::Status* add_sample_ops(ort::Api api, ort::CustomOpDomain* domain);
ort::Status* add_write_ops(ort::Api api, ort::CustomOpDomain* domain);
}  // namespace speechssm
