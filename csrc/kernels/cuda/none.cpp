// Linked where CUDA is absent: there is no device to work on.
#include "base/error.h"
#include "kernels/cuda/cuda.h"

namespace smezo::cuda {
namespace {

[[noreturn]] void absent(const char* verb) {
  fail<ArgumentError>("device", std::string("asked a CUDA device for ") + verb +
                                    ", but this build has no CUDA kernels; expected device=\"cpu\", or a "
                                    "build with SMEZO_CUDA=ON on a machine with nvcc");
}

}  // namespace

void noise(const TensorDirection&, int64_t, int64_t, float*, void*) { absent("noise"); }
void mask(const WeightView&, const TensorDirection&, int64_t, int64_t, uint8_t*, void*) { absent("a mask"); }
void decode(const WeightView&, int64_t, int64_t, float*, void*) { absent("decoded weights"); }
void produce(const OperandJob&, int64_t, int64_t, const Branches&, void*) { absent("operands"); }
void apply_update(const UpdateJob&, int64_t, int64_t, void*) { absent("an update"); }

}  // namespace smezo::cuda
