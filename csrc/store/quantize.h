// A Hugging Face folder of the llama family, quantized into a new folder as bitsandbytes stores it
// (bnb_layout.h). Memory is bounded by a few MiB for each thread and the scales and kept elements of one
// weight.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/threads.h"
#include "store/base.h"
#include "store/bnb_layout.h"
#include "store/new_checkpoint.h"

namespace smezo {

struct QuantizeResult {
  int64_t bytes_in = 0, bytes_out = 0;  // of all tensors
  int64_t n_quantized = 0, n_kept = 0;  // tensors of the base
  int64_t n_originals = 0;              // elements whose original was kept
};

// Which originals are kept beside the quantized weights (originals.h).
struct KeepOptions {
  std::string index;                   // path of an index file; "": none
  std::vector<TensorRequest> tensors;  // all of the model's, for the fingerprints of both folders
};

// Called from the calling thread after each tensor; what it throws ends the work and leaves nothing behind.

// Linear weights of the decoder blocks are quantized from the values as stored; the rest is copied as it is,
// and so are the folder's other files except weights in other formats. ArgumentError: `to` exists, `from` is
// quantized already, a format check_quant_format refuses, an odd number of elements (nf4). FormatError: no
// weight to quantize, or one with a NaN or an infinity. IoError: truncated input, full disk. With an index
// file also: ArgumentError, elements that do not increase or are not there; FormatError, a tensor that is not
// there. What it lists of tensors that stay as they are needs no keeping.
QuantizeResult quantize_folder(const std::string& from, const std::string& to, const QuantFormat& format,
                               int64_t shard_bytes, ThreadPool& pool, const OnProgress& progress,
                               const KeepOptions& keep = {});

}  // namespace smezo
