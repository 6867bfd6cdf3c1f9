// Bindings of the engine. The GIL is released around everything that computes, reads or writes.
#include "engine/engine.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "base/error.h"
#include "bindings/init.h"
#include "bindings/progress.h"
#include "engine/plan.h"
#include "engine/query_plan.h"
#include "engine/rates.h"
#include "io/journal.h"

namespace py = pybind11;

namespace smezo {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

Task task_from_name(const std::string& name) {
  if (name == "language_model") return Task::language_model;
  if (name == "choice_candidates") return Task::choice_candidates;
  if (name == "choice_sequences") return Task::choice_sequences;
  fail<ArgumentError>("task",
                      "'" + name + "', expected language_model, choice_candidates or choice_sequences");
}

template <class T>
std::vector<T> to_vector(const Array<T>& a) {
  return std::vector<T>(a.data(), a.data() + a.size());
}

Batch make_batch(const Array<int32_t>& tokens, const Array<int64_t>& segments, const Array<int32_t>& labels,
                 int n_examples, const std::string& task, int n_options, const Array<int32_t>& candidates,
                 const Array<int32_t>& answers) {
  check<ArgumentError>(
      segments.ndim() == 2 && segments.shape(1) == 3 && labels.ndim() == 2 && labels.shape(1) == 4, "batch",
      "segments or labels of another shape, expected [n, 3] and [n_labels, 4]");
  Batch b;
  b.tokens = to_vector(tokens);
  for (int64_t i = 0; i < segments.shape(0); ++i) {
    b.segments.push_back({segments.at(i, 0), segments.at(i, 1), segments.at(i, 2)});
  }
  for (int64_t i = 0; i < labels.shape(0); ++i) {
    b.labels.push_back({labels.at(i, 0), labels.at(i, 1), labels.at(i, 2), labels.at(i, 3)});
  }
  b.n_examples = n_examples;
  b.task = task_from_name(task);
  b.n_options = n_options;
  b.candidates = to_vector(candidates);
  b.answers = to_vector(answers);
  return b;
}

// Losses as numpy: [n_branches] and [n_branches, n_examples].
py::dict probe_dict(const ProbeResult& r, const Batch& batch) {
  py::dict out;
  const py::ssize_t n_branches = static_cast<py::ssize_t>(r.branches.size());
  py::array_t<double> example({n_branches, static_cast<py::ssize_t>(batch.n_examples)});
  py::array_t<double> mean(n_branches);
  py::list fixed;
  for (py::ssize_t b = 0; b < n_branches; ++b) {
    const BranchLoss& l = r.losses[static_cast<size_t>(b)];
    for (py::ssize_t e = 0; e < batch.n_examples; ++e) {
      const double count = l.count[static_cast<size_t>(e)];
      example.mutable_at(b, e) = l.sum[static_cast<size_t>(e)] / count;
    }
    mean.mutable_at(b) = l.mean();
    fixed.append(py::make_tuple(l.fixed_sum, l.n));
  }
  out["example_losses"] = example;
  out["losses"] = mean;
  out["fixed_sums"] = fixed;
  py::dict parts;
  for (const auto& [name, seconds] : r.parts) parts[py::str(name)] = seconds;
  out["parts"] = parts;
  return out;
}

// One [rows, columns] array a branch, which takes its values over: they are large, and were planned once.
py::list arrays_of(std::vector<std::vector<float>>&& values, py::ssize_t columns) {
  py::list out;
  for (auto& v : values) {
    auto* const kept = new std::vector<float>(std::move(v));
    const py::capsule owner(kept, [](void* p) { delete static_cast<std::vector<float>*>(p); });
    out.append(
        py::array_t<float>({static_cast<py::ssize_t>(kept->size()) / columns, columns}, kept->data(), owner));
  }
  return out;
}

std::vector<Branch> branches_from(const std::vector<std::tuple<int, int, float>>& rows) {
  std::vector<Branch> out;
  for (const auto& [query, sign, eps] : rows) out.push_back({query, sign, eps});
  return out;
}

// A method's parts by name; what is not there stays as it is.
MethodConfig method_from(const py::dict& d) {
  MethodConfig m;
  size_t n_known = 0;
  const auto take = [&](const char* name, auto& to) {
    using Field = std::remove_reference_t<decltype(to)>;
    if (!d.contains(name)) return;
    ++n_known;
    try {
      if constexpr (std::is_enum_v<Field>) {
        read_word(d[name].cast<std::string>(), &to);
      } else {
        to = d[name].cast<Field>();
      }
    } catch (const py::cast_error&) {
      fail<ArgumentError>("method", std::string(name) + " of another type, or a text that is not Unicode");
    }
  };
  visit_fields(m, take), visit_parts(m, take);
  take("fraction", m.fraction), take("index", m.index);
  check<ArgumentError>(n_known == d.size(), "method",
                       std::to_string(d.size() - n_known) + " unknown parts, expected only known ones");
  return m;
}

// The constructor from keyword arguments, the same for all that is opened with a run's options.
template <class T, class Open>
void def_open(py::class_<T>& c, const Open& open) {
  c.def(py::init([open](const std::string& model_dir, const std::string& run_dir, const py::dict& method,
                        const std::string& dtype, const std::string& values, const std::string& operand,
                        const std::string& reduction, uint64_t seed, int threads, int sync_every,
                        const std::string& delta, int64_t memory_budget, int generation_every,
                        bool stream_trained, int n_readers, int64_t ring_bytes, bool cached_reads,
                        int64_t device_bytes, const std::string& journal, std::optional<uint32_t> replay_to) {
          EngineOptions o;
          o.model_dir = model_dir;
          o.run_dir = run_dir;
          o.method = method_from(method);
          o.dtype = dtype;
          o.values = values;
          o.operand = operand;
          o.reduction = reduction;
          o.seed = seed;
          o.threads = threads;
          o.sync_every = sync_every;
          o.delta = delta;
          o.memory_budget = memory_budget;
          o.generation_every = generation_every;
          o.stream_trained = stream_trained;
          o.n_readers = n_readers;
          o.ring_bytes = ring_bytes;
          o.cached_reads = cached_reads;
          o.device_bytes = device_bytes;
          o.journal = journal;
          o.replay_to = replay_to.value_or(kAllRecords);
          py::gil_scoped_release release;
          return open(o);
        }),
        py::kw_only(), py::arg("model_dir"), py::arg("run_dir"), py::arg("method"), py::arg("dtype"),
        py::arg("values"), py::arg("operand"), py::arg("reduction"), py::arg("seed"), py::arg("threads"),
        py::arg("sync_every"), py::arg("delta"), py::arg("memory_budget"), py::arg("generation_every"),
        py::arg("stream_trained"), py::arg("n_readers"), py::arg("ring_bytes"), py::arg("cached_reads"),
        py::arg("device_bytes"), py::arg("journal") = "", py::arg("replay_to") = py::none());
}

py::dict plan_dict(const Planner& planner, const Batch& batch, int64_t n_branches, bool want_logits,
                   double gemm_flops_per_s, double operands_per_s, double updates_per_s,
                   double read_bytes_per_s) {
  const Plan p = planner.of(batch, {n_branches, want_logits},
                            {gemm_flops_per_s, operands_per_s, updates_per_s}, read_bytes_per_s);
  py::dict out, purposes;
  for (const auto& [name, n] : p.bytes_by_purpose) purposes[py::str(name)] = n;
  out["fits"] = p.fits;
  out["trained_streams"] = p.streams_trained;
  out["budget_bytes"] = p.budget_bytes > 0 ? py::object(py::int_(p.budget_bytes)) : py::none();
  out["predicted_peak_bytes"] = p.peak_bytes;
  out["bytes_by_purpose"] = purposes;
  out["bytes_read_per_step"] = p.bytes_read;
  out["bytes_written_per_step"] = p.bytes_written;
  out["predicted_step_s"] = p.step_s >= 0 ? py::object(py::float_(p.step_s)) : py::none();
  out["smallest_budget_bytes"] = p.smallest_budget_bytes;
  out["micro_batches"] = p.n_micro_batches;
  out["generation_bytes"] = p.generation_bytes;
  out["generation_every"] = p.steps_a_generation > 0
                                ? py::object(py::int_(static_cast<int64_t>(p.steps_a_generation)))
                                : py::none();
  return out;
}

}  // namespace

void init_engine(py::module_& m) {
  m.attr("RECORD_HEAD_BYTES") = kRecordHeadBytes;
  m.attr("ALL_RECORDS") = kAllRecords;
  m.def(
      "doctor_rates",
      [](int threads, double seconds) {
        Rates r;
        {
          py::gil_scoped_release release;
          ThreadPool pool(threads > 0 ? threads : default_threads());
          r = measure_rates(kernels_for(choose_isa()), pool, seconds);
        }
        py::dict d;
        d["gemm_flops_per_s"] = r.gemm_flops_per_s;
        d["operands_per_s"] = r.operands_per_s;
        d["updates_per_s"] = r.updates_per_s;
        return d;
      },
      py::arg("threads") = 0, py::arg("seconds") = 1.0,
      "Rates of the kernels a step uses, all threads together.");

  m.def(
      "check_method", [](const py::dict& parts) { check_method(method_from(parts)); }, py::arg("parts"),
      "ArgumentError: a number of a method out of range, or parts that make no sense together.");

  py::class_<Batch>(m, "Batch")
      .def(py::init(&make_batch), py::arg("tokens"), py::arg("segments"), py::arg("labels"),
           py::arg("n_examples"), py::arg("task"), py::arg("n_options"), py::arg("candidates"),
           py::arg("answers"));

  py::class_<Planner> planner(m, "Planner");
  def_open(planner, [](const EngineOptions& o) { return std::make_unique<Planner>(o); });
  planner
      .def(
          "fits",
          [](const Planner& p, const Batch& b, int64_t n_branches, bool want_logits) {
            return p.fits(b, {n_branches, want_logits});
          },
          py::arg("batch"), py::arg("n_branches"), py::arg("want_logits") = false,
          py::call_guard<py::gil_scoped_release>())
      .def("plan", &plan_dict, py::arg("batch"), py::arg("n_branches"), py::arg("want_logits") = false,
           py::arg("gemm_flops_per_s") = 0.0, py::arg("operands_per_s") = 0.0, py::arg("updates_per_s") = 0.0,
           py::arg("read_bytes_per_s") = 0.0,
           "What a step on this batch holds, reads and takes; rates of this machine, 0: not known.")
      .def_property_readonly("max_length", [](const Planner& p) { return p.config().max_length(); })
      .def_property_readonly("vocab_size", [](const Planner& p) { return p.config().vocab_size; })
      .def_property_readonly("base_dtype", &Planner::base_dtype);

  py::class_<Engine> engine(m, "Engine");
  def_open(engine, [](const EngineOptions& o) { return Engine::open(o); });
  engine.def("start", &Engine::start, py::arg("lr"), py::arg("eps"), py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("started", &Engine::started)
      .def_property_readonly("least_eps", &Engine::least_eps)
      .def("check_eps", &Engine::check_eps, py::arg("eps"))
      .def_property_readonly("lr", &Engine::lr)
      .def_property_readonly("eps", &Engine::eps)
      .def_property_readonly("step", &Engine::step)
      .def_property_readonly("threads", &Engine::threads)
      .def_property_readonly("notes", &Engine::notes)
      .def_property_readonly("generation_bytes_written", &Engine::generation_bytes_written)
      .def_property_readonly("n_trained", &Engine::n_trained)
      .def_property_readonly("working_copy_bytes", &Engine::working_copy_bytes)
      .def_property_readonly("device_bytes", &Engine::device_bytes)
      .def_property_readonly("bytes_by_purpose",
                             [](const Engine& e) {
                               py::dict out;
                               for (const auto& [name, n] : e.bytes_by_purpose()) out[py::str(name)] = n;
                               return out;
                             })
      .def_property_readonly(
          "traffic",
          [](const Engine& e) {
            const Traffic t = e.traffic();
            return py::make_tuple(t.bytes_read, t.stall_s);
          },
          "(bytes read by streaming, seconds waited for it) since it was opened")
      .def_property_readonly("max_length", [](const Engine& e) { return e.model_config().max_length(); })
      .def_property_readonly("vocab_size", [](const Engine& e) { return e.model_config().vocab_size; })
      .def_property_readonly("header_json", [](const Engine& e) { return to_json(e.header()); })
      .def_property_readonly("tensors",
                             [](const Engine& e) {
                               py::list out;
                               for (const ParameterSpec& p : e.parameters()) {
                                 out.append(py::make_tuple(p.name, p.rows, p.cols, p.block_linear));
                               }
                               return out;
                             })
      .def(
          "probe",
          [](Engine& e, const Batch& batch, const std::vector<std::tuple<int, int, float>>& branches,
             uint32_t step) {
            ProbeResult r;
            {
              py::gil_scoped_release release;
              r = e.probe(batch, branches_from(branches), step);
            }
            return probe_dict(r, batch);
          },
          py::arg("batch"), py::arg("branches"), py::arg("noise_step"),
          "branches: (query, sign, eps) tuples. Losses of every branch; changes no weight but to catch up.")
      .def(
          "scores",
          [](Engine& e, const Batch& batch) {
            ProbeResult r;
            {
              py::gil_scoped_release release;
              r = e.probe(batch, {Branch{}}, 0);
            }
            py::dict out = probe_dict(r, batch);
            if (batch.task != Task::language_model) {
              out["scores"] = py::cast(option_scores(batch, r.values[0]));
            }
            return out;
          },
          py::arg("batch"),
          "The plain model's losses and, for a choice, option scores [n_examples * n_options].")
      .def(
          "logits",
          [](Engine& e, const Batch& batch, const std::vector<std::tuple<int, int, float>>& branches,
             uint32_t step) {
            ProbeResult r;
            {
              py::gil_scoped_release release;
              r = e.probe(batch, branches_from(branches), step, true);
            }
            return arrays_of(std::move(r.values), e.model_config().vocab_size);
          },
          py::arg("batch"), py::arg("branches"), py::arg("noise_step"),
          "A float32 [n_labels, V] for each branch.")
      .def("scalars",
           [](const Engine& e, const std::vector<std::tuple<int, int, float>>& branches,
              const std::vector<double>& losses) {
             return scalars_of(e.header().method, branches_from(branches), losses);
           })
      .def(
          "branches",
          [](const Engine& e) {
            py::list out;
            for (const Branch& b : branches_of(e.header().method, e.eps()))
              out.append(py::make_tuple(b.query, b.sign, b.eps));
            return out;
          },
          "(query, sign, eps) of every branch of a step, in the order `scalars` takes losses in.")
      .def(
          "factors",
          [](const Engine& e, uint32_t id, uint32_t step, uint32_t query) {
            const auto [u, v] = e.factors(id, step, query);
            return py::make_tuple(py::array_t<float>(static_cast<py::ssize_t>(u.size()), u.data()),
                                  py::array_t<float>(static_cast<py::ssize_t>(v.size()), v.data()));
          },
          py::arg("tensor_id"), py::arg("step"), py::arg("query"),
          "float32 [m * rank] and [rank * n] whose product is the query's low-rank direction.")
      .def(
          "coefficients",
          [](const Engine& e, uint32_t id) {
            const std::vector<float> c = e.coefficients(id);
            return py::array_t<float>(static_cast<py::ssize_t>(c.size()), c.data());
          },
          py::arg("tensor_id"),
          "float32 [rank]: the numbers between fixed factors; empty: the method has none.")
      .def(
          "moments",
          [](Engine& e, uint32_t id, int k) {
            const std::vector<float> c = e.moments(id, k);
            return py::array_t<float>(static_cast<py::ssize_t>(c.size()), c.data());
          },
          py::arg("tensor_id"), py::arg("k"),
          "float32: what the rule keeps, at the journal's tail; empty: nothing.")
      .def("resting", &Engine::resting, py::arg("step"), "bool [n_layers]: layers that sit the step out.")
      .def(
          "commit",
          [](Engine& e, float lr, float loss, float loss_plus, float loss_minus,
             const std::vector<float>& scalars) {
            py::gil_scoped_release release;
            return e.commit({lr, loss, loss_plus, loss_minus, scalars});
          },
          py::arg("lr"), py::arg("loss"), py::arg("loss_plus"), py::arg("loss_minus"), py::arg("scalars"))
      .def("sync", &Engine::sync, py::call_guard<py::gil_scoped_release>())
      .def("flush", &Engine::flush, py::call_guard<py::gil_scoped_release>())
      .def("save_delta", &Engine::save_delta, py::arg("path"), py::call_guard<py::gil_scoped_release>())
      .def("use", &Engine::use, py::arg("deltas"), py::call_guard<py::gil_scoped_release>(),
           "[(path, weight)]: base + sum of weight * (delta - base).")
      .def(
          "merge",
          [](Engine& e, const std::string& folder, const std::string& dtype, int64_t shard_bytes,
             const PyProgress& progress) {
            py::gil_scoped_release release;
            return e.merge(folder, values_from_name(dtype), shard_bytes, with_gil(progress));
          },
          py::arg("folder"), py::arg("dtype"), py::arg("shard_bytes") = kShardBytes,
          py::arg("progress") = py::none(), "dtype: 'fp32' | 'bf16'. Returns the bytes of all tensors.")
      .def(
          "export_shira",
          [](Engine& e, const std::string& folder) {
            AdapterInfo info;
            {
              py::gil_scoped_release release;
              info = e.export_shira(folder);
            }
            py::dict d;
            d["r"] = info.r;
            d["n_values"] = info.n_values;
            d["bytes_out"] = info.n_bytes;
            d["modules"] = info.modules;
            return d;
          },
          py::arg("folder"))
      .def("save_generation", &Engine::save_generation, py::call_guard<py::gil_scoped_release>())
      .def("close", &Engine::close, py::call_guard<py::gil_scoped_release>())
      .def("surviving_perturbation", &Engine::surviving_perturbation, py::arg("eps"), py::arg("noise_step"),
           py::call_guard<py::gil_scoped_release>())
      .def(
          "mask",
          [](Engine& e, uint32_t id) {
            const std::vector<float> w = e.weights(id);
            const TensorDirection d = e.direction(id, 0, 0);
            py::array_t<bool> out(static_cast<py::ssize_t>(w.size()));
            for (size_t i = 0; i < w.size(); ++i) out.mutable_data()[i] = mask_at(d, i, w[i]);
            return out;
          },
          py::arg("tensor_id"), "bool [n]: the elements that the next step selects.")
      .def(
          "weights",
          [](Engine& e, uint32_t id) {
            const std::vector<float> w = e.weights(id);
            return py::array_t<float>(static_cast<py::ssize_t>(w.size()), w.data());
          },
          py::arg("tensor_id"), "float32 [n], at the journal's tail.");
}

}  // namespace smezo
