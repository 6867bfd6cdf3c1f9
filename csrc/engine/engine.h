// The engine: open a base, ask (probe), answer (commit), and be the same model after any crash.
//
// Invariants. Code cites them; each has a test of its name.
//
// I1  A unit's weights and rule state are base (+ starting delta) + records up to its watermark, in order. Nothing else writes them.
// I2  A record is appended before it is pending, and synced at once unless sync_every > 1; nothing with watermark w reaches a file before
//     the journal is synced to w. The base is never opened for writing.
// I3  A pending record carries its own lr and rule step: applied later, or elsewhere, it gives the same bits.
// I4  Evaluate and generate see every unit at the journal's tail; save and export write it there.
// I5  A probe changes nothing but to catch a unit up to the journal's tail as it stood when the probe began (I1); perturbation never reaches
//     a stored weight. Every branch's operand is made from the stored weight into scratch, never from another branch's.
// I6  Random bits are addressed: (run seed, step, query, purpose, tensor id, element), never drawn from a stream. See noise/address.h.
// I7  Tied tensors have one id: one direction, one update.
// I8  Every rank applies the same records; the exchanged per-example sums, not local losses, make the record.
// I9  The budget is a ceiling: planned before the first byte is read; an allocation past it is an error that names who asked.
// I10 Trained values keep at least 24 bits: fp32, or bf16 plus an 8-bit tail. See format/split24.h.
// I11 A non-finite loss or scalar makes a skipped step, recorded as such; neither filtered nor hidden.
// I12 An example's loss on a branch depends on weights, example, branch and instruction set only. Per-example losses are added as int64
//     fixed point (2^-32), so sums over examples, threads and ranks are exact and order-free.
#pragma once
