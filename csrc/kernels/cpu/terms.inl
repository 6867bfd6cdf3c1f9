// Terms of a product (kernels.h) as elements of an operand. Included inside the namespace of an instruction
// set.
#pragma once

template <class E>
struct TermsOf {
  TermsOf(const Terms& t, int64_t ld)
      : strip(static_cast<const E*>(t.strip)),
        lda(t.k > 0 ? ld : 0),
        k(t.k),
        packed(static_cast<const E*>(t.packed)) {}
  const E* strip;
  int64_t lda, k;
  const E* packed;
};
