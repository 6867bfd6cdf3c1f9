// Bindings of the files that `inspect` and the tests read: journal, state files, safetensors headers.
#include "io/journal.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/init.h"
#include "io/safetensors.h"
#include "io/state_file.h"
#include "store/originals.h"

namespace py = pybind11;

namespace smezo {
namespace {

py::dict record_dict(const Record& r, uint32_t chain) {
  py::dict d;
  d["kind"] = r.kind == RecordKind::step ? "step" : "skipped";
  d["step"] = r.step;
  d["lr"] = r.lr;
  d["decay"] = r.decay;
  d["loss"] = r.loss;
  d["loss_plus"] = r.loss_plus;
  d["loss_minus"] = r.loss_minus;
  d["scalars"] = r.scalars;
  d["chain"] = chain;
  return d;
}

// Without records: a long journal's, as Python has them, are more than memory should hold.
py::dict read_journal_dict(const std::string& path, bool with_records) {
  py::list records;
  Record last;
  uint32_t last_chain = 0;
  int64_t n_skipped = 0;
  const JournalState state = read_journal(path, [&](const Record& r, uint32_t chain) {
    n_skipped += r.kind != RecordKind::step;
    last = r, last_chain = chain;
    if (with_records) records.append(record_dict(r, chain));
  });
  py::dict out;
  out["n_skipped"] = n_skipped;
  out["last_record"] = state.n_records > 0 ? py::object(record_dict(last, last_chain)) : py::none();
  out["header_json"] = state.header_json;
  out["salt"] = state.salt;
  out["n_records"] = state.n_records;
  out["n_bytes"] = state.n_bytes;
  out["dropped_bytes"] = state.dropped_bytes;
  out["tail_checksum"] = state.tail_checksum;
  out["records"] = records;
  return out;
}

py::dict read_state_dict(const std::string& path, const std::string& kind, bool verify) {
  const StateReader file =
      StateReader::open(path, kind == "delta" ? StateKind::delta : StateKind::generation);
  if (verify) file.verify_all();
  py::list tensors;
  for (const StateTensor& t : file.tensors()) {
    py::dict d;
    d["name"] = t.name;
    d["dtype"] = dtype_name(t.dtype);
    d["shape"] = t.shape;
    d["packed"] = t.packed;
    tensors.append(d);
  }
  py::dict out;
  out["method_json"] = file.header().method_json;
  out["base_fingerprint"] = file.header().base_fingerprint;
  out["watermark"] = file.header().watermark;
  out["journal_tail"] = file.header().journal_tail;
  out["file_bytes"] = file.file_bytes();
  out["tensors"] = tensors;
  return out;
}

py::dict read_safetensors_dict(const std::string& path) {
  const Safetensors file = Safetensors::open(path);
  py::dict bytes;
  for (const TensorEntry& t : file.tensors()) {
    const py::str dtype(t.dtype);
    bytes[dtype] = (bytes.contains(dtype) ? bytes[dtype].cast<int64_t>() : 0) + t.n_bytes;
  }
  py::dict out;
  out["file_bytes"] = file.shard_bytes(0);
  out["n_tensors"] = file.tensors().size();
  out["n_bytes_by_dtype"] = bytes;
  out["metadata"] = file.metadata();
  return out;
}

py::dict read_kept_dict(const std::string& path) {
  const Originals file(path);
  file.prove();
  py::dict out;
  out["n_tensors"] = file.names().size();
  out["n_elements"] = file.n_elements();
  out["index_hash"] = file.index_hash();
  out["source_fingerprint"] = file.source_fingerprint();
  out["base_fingerprint"] = file.base_fingerprint();
  return out;
}

}  // namespace

void init_journal(py::module_& m) {
  m.def("read_journal", &read_journal_dict, py::arg("path"), py::arg("with_records") = true,
        "A journal's header, state and records. FormatError when it is damaged.");
  m.def("fork_journal", &fork_journal, py::arg("source"), py::arg("out"), py::arg("step"),
        "A new journal with the records up to `step`. Returns how many.");
  m.def("read_state", &read_state_dict, py::arg("path"), py::arg("kind"), py::arg("verify") = true,
        "Header and tensor list of a delta or generation file (kind: 'delta' | 'generation').");
  m.def("read_safetensors", &read_safetensors_dict, py::arg("path"),
        "What the header of a safetensors file says, in sums. FormatError when it is damaged.");
  m.def("read_kept", &read_kept_dict, py::arg("path"),
        "What kept.safetensors of a quantized folder says. FormatError when it is damaged.");
}

}  // namespace smezo
