// Models of random weights for benchmarks of memory and time: written as fast as the disk takes them, in
// bounded memory, with values of the size a trained model's have.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/threads.h"
#include "store/bnb_layout.h"
#include "store/quantize.h"

namespace smezo {

// Standard deviation of a matrix's weights.
constexpr float kRandomStd = 0.02f;

// `config` is written as config.json, with quantization_config added where `quantized`. Tensors are BF16:
// matrices random, vectors (norms) ones; with `quantized`, the linear weights of decoder blocks are in
// `format` (nf4 only). The same seed gives the same bytes for any number of threads. Returns the bytes of all
// tensors. ArgumentError: `to` exists, a format check_quant_format refuses, int8.
int64_t write_random_model(const std::string& to, const Json& config, const std::vector<TensorSpec>& tensors,
                           bool quantized, const QuantFormat& format, uint64_t seed, int64_t shard_bytes,
                           ThreadPool& pool, const OnProgress& progress);

}  // namespace smezo
