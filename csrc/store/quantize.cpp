#include "store/quantize.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "format/dynamic8.h"
#include "format/nf4.h"
#include "io/file.h"
#include "store/content_hash.h"
#include "store/convert.h"
#include "store/encode.h"
#include "store/in_order.h"
#include "store/index_file.h"
#include "store/originals.h"

namespace smezo {
namespace {

constexpr int64_t kPieceElements = 1 << 18;
constexpr int64_t kCopyBytes = 1 << 20;

bool is_float(const std::string& dtype) { return dtype == "F32" || dtype == "F16" || dtype == "BF16"; }

// The index set's elements among [e0, e0 + n), whose values these are.
void take(IndexOverlay& set, int64_t cols, int64_t e0, int64_t n, const float* values) {
  if (set.n() == 0) return;
  for (int64_t row = e0 / cols; row * cols < e0 + n; ++row) {
    const size_t r = static_cast<size_t>(row);
    for (uint32_t i = set.row_begin[r]; i < set.row_begin[r + 1]; ++i) {
      const int64_t at = row * cols + set.col[i] - e0;
      if (at >= 0 && at < n) set.value[i] = values[at];
    }
  }
}

class Quantizer {
 public:
  Quantizer(const std::string& from, const QuantFormat& format, ThreadPool& pool, const KeepOptions& keep)
      : from_(from), format_(format), pool_(pool), keep_(keep), base_(open(from)) {}

  void plan();
  void write(const std::string& folder, int64_t shard_bytes, const OnProgress& progress);
  QuantizeResult result;

 private:
  struct Row {
    const TensorEntry* entry;
    bool quantized;
    QuantTensors to;                    // of one that is kept: its one spec
    const TensorEntry* list = nullptr;  // of the elements whose originals are kept
  };

  static Safetensors open(const std::string& from) {
    check<ArgumentError>(folder_exists(from), "quantize",
                         "'" + from + "' is not a folder, expected a Hugging Face folder with config.json");
    return Safetensors::open(from);
  }
  void plan_originals();
  IndexOverlay set_of(const TensorEntry& t, const TensorEntry& list) const;
  using OnSet = std::function<void(const Row& row, const IndexOverlay& set)>;
  void write_weights(const std::string& folder, int64_t shard_bytes, const OnProgress& progress,
                     const OnSet& keep_set);
  int64_t write_with_originals(const std::string& folder, int64_t shard_bytes, const OnProgress& progress);
  void keep(const Row& row, SafetensorsSink& sink, size_t first) const;
  void nf4(const Row& row, SafetensorsSink& sink, size_t first, IndexOverlay& set) const;
  void int8(const Row& row, SafetensorsSink& sink, size_t first, IndexOverlay& set) const;
  void read_f32(const TensorEntry& t, int64_t e0, int64_t n, float* to) const;
  void check_finite(const TensorEntry& t, const float* absmax, int64_t n) const;

  std::string from_;
  QuantFormat format_;
  ThreadPool& pool_;
  const KeepOptions& keep_;
  Safetensors base_;
  std::optional<Safetensors> index_;
  Json config_;
  std::vector<Row> rows_;
};

void Quantizer::plan() {
  const std::string path = join(from_, "config.json");
  config_ = Json::parse(read_all(path), "'" + path + "'");
  config_.as_object("'" + path + "'");
  check<ArgumentError>(config_.find("quantization_config") == nullptr, "quantize",
                       "config.json of '" + from_ +
                           "' has a quantization_config: it is quantized already, "
                           "expected the model it was made from");
  std::vector<const TensorEntry*> entries;
  for (const TensorEntry& t : base_.tensors()) entries.push_back(&t);
  // As they lie in the files, so that reading runs forward.
  std::sort(entries.begin(), entries.end(), [](const TensorEntry* a, const TensorEntry* b) {
    return std::pair(a->shard, a->offset) < std::pair(b->shard, b->offset);
  });
  for (const TensorEntry* t : entries) {
    Row row{t, is_block_linear(t->name, t->shape), {}};
    check<ArgumentError>(!row.quantized || is_float(t->dtype), "quantize",
                         "tensor '" + t->name + "' in " + base_.shard_path(t->shard) + " has dtype " +
                             t->dtype +
                             ", expected F32, F16 or BF16: it is quantized already, or in a format this "
                             "version does not read");
    if (row.quantized) {
      row.to = named(base_.shard_path(t->shard),
                     [&] { return quantized_tensors(t->name, t->shape[0], t->shape[1], format_); });
      ++result.n_quantized;
    } else {
      row.to.specs = {{t->name, t->dtype, t->shape}};
      ++result.n_kept;
    }
    result.bytes_in += t->n_bytes;
    rows_.push_back(std::move(row));
  }
  check<FormatError>(
      result.n_quantized > 0, "quantize",
      "no tensor of '" + from_ +
          "' is the weight of a linear layer in a decoder block "
          "('...layers.N....weight' with two dimensions), expected a model of the llama family");
  if (!keep_.index.empty()) plan_originals();
}

// All lists are read once before anything is written.
void Quantizer::plan_originals() {
  index_.emplace(Safetensors::open(keep_.index));
  for (const TensorEntry& list : index_->tensors()) {
    const auto row =
        std::find_if(rows_.begin(), rows_.end(), [&](const Row& r) { return r.entry->name == list.name; });
    check<FormatError>(row != rows_.end(), "index set",
                       keep_.index + " lists elements of '" + list.name +
                           "', expected tensors of this model; another model's file?");
    set_of(*row->entry, list);
    if (!row->quantized) continue;
    row->list = &list;
    result.n_originals += list.n;
  }
}

IndexOverlay Quantizer::set_of(const TensorEntry& t, const TensorEntry& list) const {
  const int64_t cols = t.shape.empty() ? 1 : t.shape.back();
  return named(keep_.index,
               [&] { return make_overlay(listed_elements(*index_, list), cols > 0 ? t.n / cols : 0, cols); });
}

void Quantizer::write(const std::string& folder, int64_t shard_bytes, const OnProgress& progress) {
  if (index_) {
    result.bytes_out += write_with_originals(folder, shard_bytes, progress);
  } else {
    write_weights(folder, shard_bytes, progress, nullptr);
  }
  config_.set("quantization_config", quantization_config(format_));
  write_atomically(join(folder, "config.json"), config_.dump());
  copy_other_files(from_, folder);
}

int64_t Quantizer::write_with_originals(const std::string& folder, int64_t shard_bytes,
                                        const OnProgress& progress) {
  const std::string source = hash_text(Base(from_, keep_.tensors).hash(pool_));
  std::vector<OriginalTensor> tensors;
  for (const Row& row : rows_) {
    if (row.list) tensors.push_back({row.entry->name, row.list->dtype, row.list->n});
  }
  return write_originals(
      join(folder, kKeptFile), hash_of_file(keep_.index), source, tensors, [&](OriginalsSink& sink) {
        size_t next = 0;
        write_weights(folder, shard_bytes, progress, [&](const Row& row, const IndexOverlay& set) {
          std::vector<uint8_t> elements(static_cast<size_t>(row.list->n_bytes));
          index_->read(*row.list, 0, row.list->n_bytes, elements.data());
          sink.write(next++, elements.data(), set.value.data());
        });
        return hash_text(Base(folder, keep_.tensors).hash(pool_));
      });
}

void Quantizer::write_weights(const std::string& folder, int64_t shard_bytes, const OnProgress& progress,
                              const OnSet& keep_set) {
  std::vector<TensorGroup> groups;
  for (const Row& row : rows_) groups.push_back(row.to.specs);
  int64_t done = 0;
  result.bytes_out =
      write_shards(folder, groups, shard_bytes, [&](size_t group, SafetensorsSink& sink, size_t first) {
        const Row& row = rows_[group];
        IndexOverlay set;
        if (row.list) set = set_of(*row.entry, *row.list);
        if (!row.quantized) {
          keep(row, sink, first);
        } else if (format_.dtype == DType::NF4) {
          nf4(row, sink, first, set);
        } else {
          int8(row, sink, first, set);
        }
        if (row.list) keep_set(row, set);
        done += row.entry->n_bytes;
        if (progress) progress(done, result.bytes_in);
      });
}

void Quantizer::keep(const Row& row, SafetensorsSink& sink, size_t first) const {
  std::vector<uint8_t> piece(static_cast<size_t>(std::min(kCopyBytes, row.entry->n_bytes)));
  for (int64_t at = 0; at < row.entry->n_bytes; at += kCopyBytes) {
    const int64_t n = std::min(kCopyBytes, row.entry->n_bytes - at);
    base_.read(*row.entry, at, n, piece.data());
    sink.write(first, piece.data(), n);
  }
}

void Quantizer::read_f32(const TensorEntry& t, int64_t e0, int64_t n, float* to) const {
  const DType dtype = dtype_from_name(t.dtype);
  const int64_t size = dtype_bytes(dtype);
  if (dtype == DType::F32) return base_.read(t, e0 * size, n * size, to);
  // Two bytes an element fit in the second half of the destination, and are read before they are overwritten.
  uint8_t* const raw = reinterpret_cast<uint8_t*>(to) + n * size;
  base_.read(t, e0 * size, n * size, raw);
  WeightView stored;
  stored.data = raw;
  stored.dtype = dtype;
  read_as(stored, 0, n, DType::F32, to);
}

void Quantizer::check_finite(const TensorEntry& t, const float* absmax, int64_t n) const {
  if (!std::all_of(absmax, absmax + n, [](float x) { return std::isfinite(x); }))
    fail<FormatError>("quantize", "tensor '" + t.name + "' in " + base_.shard_path(t.shard) +
                                      " holds a NaN or an infinity, expected finite weights; a damaged "
                                      "checkpoint?");
}

void Quantizer::nf4(const Row& row, SafetensorsSink& sink, size_t first, IndexOverlay& set) const {
  const TensorEntry& t = *row.entry;
  const int64_t blocks = (t.n + format_.block - 1) / format_.block;
  const int64_t n_pieces = (t.n + kPieceElements - 1) / kPieceElements;
  std::vector<float> absmax(static_cast<size_t>(blocks));
  std::vector<std::vector<float>> values(static_cast<size_t>(pool_.size()));
  const auto size_of = [&](int64_t piece) { return std::min(kPieceElements, t.n - piece * kPieceElements); };
  const auto make = [&](int64_t piece, int thread, uint8_t* codes) {
    std::vector<float>& x = values[static_cast<size_t>(thread)];
    x.resize(static_cast<size_t>(kPieceElements));
    const int64_t n = size_of(piece), block0 = piece * (kPieceElements / format_.block);
    read_f32(t, piece * kPieceElements, n, x.data());
    take(set, t.shape[1], piece * kPieceElements, n, x.data());
    nf4_encode(x.data(), n, format_.block, codes, &absmax[static_cast<size_t>(block0)]);
    check_finite(t, &absmax[static_cast<size_t>(block0)], (n + format_.block - 1) / format_.block);
  };
  in_order(pool_, n_pieces, kPieceElements / 2, make, [&](int64_t piece, const uint8_t* codes) {
    sink.write(first + row.to.codes, codes, size_of(piece) / 2);
  });

  float offset = 0;
  if (format_.double_quant) {
    offset = nested_offset(absmax.data(), blocks);
    std::vector<uint8_t> codes(static_cast<size_t>(blocks));
    std::vector<float> nested(static_cast<size_t>((blocks + kNestedBlock - 1) / kNestedBlock));
    nested_encode(absmax.data(), blocks, offset, codes.data(), nested.data());
    sink.write(first + row.to.absmax, codes.data(), blocks);
    sink.write(first + row.to.nested_absmax, nested.data(), static_cast<int64_t>(nested.size()) * 4);
    sink.write(first + row.to.nested_map, dynamic8().value.data(), 256 * 4);
  } else {
    sink.write(first + row.to.absmax, absmax.data(), blocks * 4);
  }
  float map[16];
  for (uint32_t k = 0; k < 16; ++k) map[k] = nf4_value(k);
  sink.write(first + row.to.map, map, sizeof map);
  const std::string state =
      quant_state_text(t.shape[0], t.shape[1], dtype_from_name(t.dtype), format_, offset);
  sink.write(first + row.to.state, state.data(), static_cast<int64_t>(state.size()));
}

void Quantizer::int8(const Row& row, SafetensorsSink& sink, size_t first, IndexOverlay& set) const {
  const TensorEntry& t = *row.entry;
  const int64_t rows = t.shape[0], cols = t.shape[1];
  const int64_t piece_rows = std::max<int64_t>(1, kPieceElements / std::max<int64_t>(cols, 1));
  const int64_t n_pieces = (rows + piece_rows - 1) / piece_rows;
  std::vector<float> absmax(static_cast<size_t>(rows));
  std::vector<std::vector<float>> values(static_cast<size_t>(pool_.size()));
  const auto size_of = [&](int64_t piece) { return std::min(piece_rows, rows - piece * piece_rows); };
  const auto make = [&](int64_t piece, int thread, uint8_t* codes) {
    std::vector<float>& x = values[static_cast<size_t>(thread)];
    x.resize(static_cast<size_t>(piece_rows * cols));
    const int64_t r0 = piece * piece_rows, n = size_of(piece);
    read_f32(t, r0 * cols, n * cols, x.data());
    take(set, cols, r0 * cols, n * cols, x.data());
    int8_encode(x.data(), n, cols, reinterpret_cast<int8_t*>(codes), &absmax[static_cast<size_t>(r0)]);
    check_finite(t, &absmax[static_cast<size_t>(r0)], n);
  };
  in_order(pool_, n_pieces, piece_rows * cols, make, [&](int64_t piece, const uint8_t* codes) {
    sink.write(first + row.to.codes, codes, size_of(piece) * cols);
  });
  sink.write(first + row.to.absmax, absmax.data(), rows * 4);
  const uint8_t by_row = 0;
  sink.write(first + row.to.weight_format, &by_row, 1);
}

}  // namespace

QuantizeResult quantize_folder(const std::string& from, const std::string& to, const QuantFormat& format,
                               int64_t shard_bytes, ThreadPool& pool, const OnProgress& progress,
                               const KeepOptions& keep) {
  check_quant_format(format);
  Quantizer quantizer(from, format, pool, keep);
  quantizer.plan();
  NewFolder folder(to);
  quantizer.write(folder.path(), shard_bytes, progress);
  folder.finish();
  return quantizer.result;
}

}  // namespace smezo
