#include <algorithm>
#include <cstring>
#include <map>

#include "core/error.hpp"
#include "core/host_parts.hpp"
#include "launcher/checkpoint_manifest.hpp"
#include "launcher/safetensors.hpp"
#include "parallel/agree.hpp"

namespace reprise {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kSpanElements = 1 << 18;  // read at once when runs lie close together
constexpr std::int64_t kGapElements = 1 << 12;   // reading over a gap is cheaper than another system call

/// Consecutive elements that a stored tensor and a held view share.
struct Run {
  std::int64_t stored = 0, held = 0, count = 0;
};

/// The runs that two pieces of one parameter share, ascending. Both are row-major, so a run is at most one row of the
/// narrower block, and neighbours join where both blocks are equally wide.
std::vector<Run> shared_runs(const StoredPiece& stored, const StoredPiece& held) {
  const Range cols = intersect(stored.cols, held.cols);
  std::vector<Run> runs;
  if (cols.size() == 0) return runs;
  const auto touched_rows = [](const StoredPiece& piece) {
    const std::int64_t width = piece.cols.size();
    return Range{piece.rows.begin + piece.elements.begin / width,
                 piece.rows.begin + (piece.elements.end + width - 1) / width};
  };
  const Range rows = intersect(touched_rows(stored), touched_rows(held));
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    // Both offsets are of the row's first shared column, in the stored tensor and in the held view.
    const auto offset = [&](const StoredPiece& piece) {
      return (row - piece.rows.begin) * piece.cols.size() + cols.begin - piece.cols.begin - piece.elements.begin;
    };
    const std::int64_t from = offset(stored), to = offset(held);
    const std::int64_t skip = std::max({std::int64_t{0}, -from, -to});
    const std::int64_t end = std::min({cols.size(), stored.elements.size() - from, held.elements.size() - to});
    if (skip >= end) continue;
    const Run run{from + skip, to + skip, end - skip};
    const bool joins = !runs.empty() && runs.back().stored + runs.back().count == run.stored &&
                       runs.back().held + runs.back().count == run.held;
    if (joins) {
      runs.back().count += run.count;
    } else {
      runs.push_back(run);
    }
  }
  return runs;
}

void read_runs(const SafetensorsReader& reader, const SafetensorsEntry& entry, const std::vector<Run>& runs,
               VectorView<float> output, std::vector<float>& span) {
  constexpr std::int64_t kBytes = sizeof(float);
  for (std::size_t first = 0, last = 0; first < runs.size(); first = last) {
    const std::int64_t begin = runs[first].stored;
    std::int64_t end = begin + runs[first].count;
    for (last = first + 1; last < runs.size(); ++last) {
      const Run& next = runs[last];
      if (next.stored - end > kGapElements || next.stored + next.count - begin > kSpanElements) break;
      end = next.stored + next.count;
    }
    if (last == first + 1) {
      reader.read_bytes(entry, begin * kBytes, (end - begin) * kBytes, output.data + runs[first].held);
      continue;
    }
    span.resize(static_cast<std::size_t>(end - begin));
    reader.read_bytes(entry, begin * kBytes, (end - begin) * kBytes, span.data());
    for (std::size_t r = first; r < last; ++r) {
      std::memcpy(output.data + runs[r].held, span.data() + (runs[r].stored - begin),
                  static_cast<std::size_t>(runs[r].count * kBytes));
    }
  }
}

/// The runs of the held elements [begin, begin + count), counted from there.
std::vector<Run> runs_within(const std::vector<Run>& runs, std::int64_t begin, std::int64_t count) {
  std::vector<Run> within;
  for (const Run& run : runs) {
    const Range part = intersect({run.held, run.held + run.count}, {begin, begin + count});
    if (part.size() > 0) within.push_back({run.stored + part.begin - run.held, part.begin - begin, part.size()});
  }
  return within;
}

/// Reads runs into a held view on a device. What lies between them keeps its values.
void read_runs(const SafetensorsReader& reader, const SafetensorsEntry& entry, const std::vector<Run>& runs,
               VectorView<float> held, std::vector<float>& span, HostParts<float>& parts) {
  const std::int64_t first = runs.front().held, end = runs.back().held + runs.back().count;
  const auto read_part = [&](std::int64_t begin, VectorView<float> part) {
    read_runs(reader, entry, runs_within(runs, first + begin, part.size), part, span);
  };
  if (runs.size() == 1) {
    parts.write(held.slice(first, end - first), read_part);
  } else {
    parts.change(held.slice(first, end - first), read_part);
  }
}

void check_same_parameters(const std::string& what, const std::vector<StoredParameter>& stored,
                           const std::vector<ParameterSpec>& specs) {
  std::map<std::string, const StoredParameter*> by_name;
  for (const StoredParameter& parameter : stored) by_name[parameter.name] = &parameter;
  for (const ParameterSpec& spec : specs) {
    const auto found = by_name.find(spec.name);
    require(found != by_name.end(), ErrorKind::kCheckpoint, "{}: has no tensor \"{}\", which this model needs", what,
            spec.name);
    const StoredParameter& parameter = *found->second;
    require(parameter.rows == spec.global_rows && parameter.cols == spec.global_cols, ErrorKind::kCheckpoint,
            "{}: tensor \"{}\" has the shape [{}, {}], this model's is [{}, {}]", what, spec.name, parameter.rows,
            parameter.cols, spec.global_rows, spec.global_cols);
    require(parameter.frozen == spec.frozen, ErrorKind::kCheckpoint, "{}: tensor \"{}\" was {}, here it is {}", what,
            spec.name, parameter.frozen ? "frozen" : "trained", spec.frozen ? "frozen" : "trained");
    by_name.erase(found);
  }
  require(by_name.empty(), ErrorKind::kCheckpoint, "{}: tensor \"{}\" is not one of this model", what,
          by_name.empty() ? "" : by_name.begin()->first);
}

/// Fills the held pieces from the stored ones, one file open at a time.
class Loader {
 public:
  Loader(const Stream& stream, const fs::path& folder, const CheckpointManifest& manifest,
         const std::vector<ParameterSpec>& specs, const std::vector<OwnedPiece>& held)
      : folder_(folder), manifest_(manifest), filled_(held.size(), 0), parts_(stream, kPartElements, "a checkpoint") {
    std::map<std::string, std::size_t> index;
    for (std::size_t p = 0; p < manifest.parameters.size(); ++p) index[manifest.parameters[p].name] = p;
    wanted_.resize(manifest.parameters.size());
    for (std::size_t h = 0; h < held.size(); ++h) {
      if (held[h].local.size() == 0) continue;
      const ParameterSpec& spec = specs[static_cast<std::size_t>(held[h].parameter)];
      const std::size_t parameter = index.at(spec.name);
      wanted_[parameter].push_back({h,
                                    {static_cast<std::int64_t>(parameter),
                                     {spec.row_begin, spec.row_end},
                                     {spec.col_begin, spec.col_end},
                                     held[h].local},
                                    {held[h].master, held[h].exp_avg, held[h].exp_avg_sq}});
    }
  }

  void load() {
    for (const StoredFile& file : manifest_.files) load_file(file);
    for (const auto& parameter : wanted_) {
      for (const Wanted& wanted : parameter) {
        require(filled_[wanted.held] == wanted.piece.elements.size(), ErrorKind::kCheckpoint,
                "{}: holds {} elements of tensor \"{}\" where {} are needed", folder_.string(), filled_[wanted.held],
                manifest_.parameters[static_cast<std::size_t>(wanted.piece.parameter)].name,
                wanted.piece.elements.size());
      }
    }
  }

 private:
  struct Wanted {
    std::size_t held = 0;
    StoredPiece piece;
    VectorView<float> views[3];
  };

  void load_file(const StoredFile& file) {
    std::unique_ptr<SafetensorsReader> reader;
    for (const StoredPiece& piece : file.pieces) {
      for (const Wanted& wanted : wanted_[static_cast<std::size_t>(piece.parameter)]) {
        const auto runs = shared_runs(piece, wanted.piece);
        if (runs.empty()) continue;
        if (!reader) reader = std::make_unique<SafetensorsReader>(folder_ / file.name, ErrorKind::kCheckpoint);
        for (const Run& run : runs) filled_[wanted.held] += run.count;
        load_piece(*reader, piece, wanted, runs);
      }
    }
  }

  void load_piece(const SafetensorsReader& reader, const StoredPiece& piece, const Wanted& wanted,
                  const std::vector<Run>& runs) {
    const std::string& parameter = manifest_.parameters[static_cast<std::size_t>(piece.parameter)].name;
    for (std::size_t k = 0; k < std::size(kStateKinds); ++k) {
      if (wanted.views[k].empty()) continue;
      const SafetensorsEntry& entry = reader.at(tensor_name(parameter, kStateKinds[k], piece));
      require(entry.dtype == "F32" && entry.shape == std::vector<std::int64_t>{piece.elements.size()},
              ErrorKind::kCheckpoint, "{}: tensor \"{}\" is not F32 of shape [{}]", reader.path().string(), entry.name,
              piece.elements.size());
      read_runs(reader, entry, runs, wanted.views[k], span_, parts_);
    }
  }

  const fs::path& folder_;
  const CheckpointManifest& manifest_;
  std::vector<std::vector<Wanted>> wanted_;  // by parameter of the manifest
  std::vector<std::int64_t> filled_;         // elements, by held piece
  std::vector<float> span_;
  HostParts<float> parts_;
};

}  // namespace

TrainerState load_checkpoint(const Stream& stream, const ProcessGroups& groups, const std::filesystem::path& folder,
                             const std::vector<ParameterSpec>& specs, const std::vector<OwnedPiece>& held) {
  Communicator& world = *groups.world;
  CheckpointManifest manifest;
  agree(world, [&] {
    manifest = read_manifest(folder);
    const auto problems = coverage_problems(manifest);
    require(problems.empty(), ErrorKind::kCheckpoint, "{}: {}", folder.string(), problems.empty() ? "" : problems[0]);
    check_same_parameters(folder.string(), manifest.parameters, specs);
  });
  agree(world, [&] {
    for (auto f = static_cast<std::size_t>(world.rank()); f < manifest.files.size();
         f += static_cast<std::size_t>(world.size())) {
      const std::string problem = file_problem(folder, manifest.files[f]);
      require(problem.empty(), ErrorKind::kCheckpoint, "{}", problem);
    }
  });
  agree(world, [&] { Loader(stream, folder, manifest, specs, held).load(); });
  return manifest.state;
}

TrainerState read_trainer_state(const std::filesystem::path& folder) {
  return read_manifest(folder).state;
}

}  // namespace reprise
