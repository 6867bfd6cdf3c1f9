// State files of an engine, deltas and generations: what both say of the run, and how both are read.
#pragma once
#include <cstdint>
#include <string>

#include "engine/engine_impl.h"

namespace smezo {

// At the journal's tail.
StateHeader state_header(const Engine::Impl& m);

struct Moments {
  float* values = nullptr;  // nullptr: streamed
  int64_t n = 0;
};
// What this run keeps under the name of a moment; n = 0: it is none.
Moments moments_of(const Engine::Impl& m, const std::string& name);

// A file's values: in memory what lies there, streamed from the file what does not. FormatError,
// ArgumentError.
void take_state(Engine::Impl& m, const StateReader& file, const std::string& where);

}  // namespace smezo
