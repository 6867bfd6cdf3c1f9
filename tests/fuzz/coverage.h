// Which edges an execution went over, by the compiler's hooks (-fsanitize-coverage=trace-pc).
#pragma once
#include <cstddef>
#include <cstdint>

namespace smezo_fuzz {

void forget_edges();         // before an execution
void forget_all_edges();     // before the first of another reader
bool new_edges();            // after it: one that none before it had?
size_t n_edges();            // of all executions since forget_all_edges
void count_memory(bool on);  // that is allocated
int64_t most_memory();       // held at a time since counting began

}  // namespace smezo_fuzz
