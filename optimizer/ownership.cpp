#include "optimizer/ownership.hpp"

#include <algorithm>
#include <map>
#include <string_view>

#include "core/error.hpp"
#include "core/math.hpp"
#include "core/transfer.hpp"

namespace reprise {

namespace {

/// values = their reduction over the group. Collectives take memory of the stream's device.
void all_reduce_host(const Context& context, Communicator& group, std::vector<std::int64_t>& values,
                     ReduceOp op = ReduceOp::kSum) {
  auto on_device = to_device(context.stream, values, "the ownership manifest");
  group.all_reduce(context.stream, on_device.view(), op);
  copy_to_host<std::int64_t>(context.stream, on_device.view(), values);
}

/// One parameter's block on one rank, as it travels.
struct Block {
  std::int64_t row_begin, row_end, col_begin, col_end, counted;

  [[nodiscard]] bool empty() const { return row_begin >= row_end || col_begin >= col_end; }
  [[nodiscard]] bool same_place(const Block& other) const {
    return row_begin == other.row_begin && row_end == other.row_end && col_begin == other.col_begin &&
           col_end == other.col_end;
  }
  [[nodiscard]] bool overlaps(const Block& other) const {
    return !empty() && !other.empty() && row_begin < other.row_end && other.row_begin < row_end &&
           col_begin < other.col_end && other.col_begin < col_end;
  }
};
constexpr std::int64_t kBlockWords = sizeof(Block) / sizeof(std::int64_t);

// FNV-1a; a fingerprint against declarations that differ by mistake, not against malice.
class Fingerprint {
 public:
  void add(std::int64_t value) {
    for (int shift = 0; shift < 64; shift += 8) add_byte(static_cast<unsigned char>(value >> shift));
  }
  void add(std::string_view text) {
    add(static_cast<std::int64_t>(text.size()));
    for (const char c : text) add_byte(static_cast<unsigned char>(c));
  }
  /// Non-negative, so that its negative exists.
  [[nodiscard]] std::int64_t value() const { return static_cast<std::int64_t>(hash_ >> 1); }

 private:
  void add_byte(unsigned char byte) { hash_ = (hash_ ^ byte) * 1099511628211ull; }

  std::uint64_t hash_ = 14695981039346656037ull;
};

std::int64_t fingerprint_of(const ParameterSpec& spec) {
  Fingerprint fingerprint;
  fingerprint.add(spec.name);
  fingerprint.add(spec.layer);
  fingerprint.add(spec.global_rows);
  fingerprint.add(spec.global_cols);
  fingerprint.add(static_cast<std::int64_t>(spec.is_vector) | static_cast<std::int64_t>(spec.decay) << 1 |
                  static_cast<std::int64_t>(spec.sum_over_tp) << 2 | static_cast<std::int64_t>(spec.frozen) << 3);
  return fingerprint.value();
}

/// The first defect that this rank sees; ranks agree on one before anybody throws, so that nobody waits for a peer.
struct Verdict {
  std::int64_t parameter = -1;
  std::string text;

  template <class... Args>
  void reject(std::int64_t index, fmt::format_string<Args...> format, Args&&... args) {
    if (parameter >= 0) return;
    parameter = index;
    text = fmt::format(format, std::forward<Args>(args)...);
  }
};

void throw_together(const Context& context, const std::vector<ParameterSpec>& specs, const Verdict& verdict) {
  std::vector<std::int64_t> agreed{verdict.parameter};
  all_reduce_host(context, *context.groups.world, agreed, ReduceOp::kMax);
  const std::int64_t worst = agreed[0];
  if (worst < 0) return;
  if (verdict.parameter >= 0) fail(ErrorKind::kInternal, "ownership of parameters: {}", verdict.text);
  const bool known = worst < static_cast<std::int64_t>(specs.size());
  fail(ErrorKind::kInternal, "ownership of parameters: \"{}\" is declared wrongly on another rank",
       known ? specs[static_cast<std::size_t>(worst)].name : "?");
}

/// Whether the entries are equal on all ranks of the group, one answer per entry.
std::vector<bool> equal_on_all(const Context& context, Communicator& group, const std::vector<std::int64_t>& values) {
  std::vector<std::int64_t> extremes = values;
  for (const std::int64_t value : values) extremes.push_back(-value);
  all_reduce_host(context, group, extremes, ReduceOp::kMax);
  std::vector<bool> equal;
  for (std::size_t i = 0; i < values.size(); ++i) equal.push_back(extremes[i] == -extremes[values.size() + i]);
  return equal;
}

void check_same_declarations(const Context& context, const std::vector<ParameterSpec>& specs,
                             const FlatLayout& layout) {
  const auto count = static_cast<std::int64_t>(specs.size());
  Verdict verdict;
  if (!equal_on_all(context, *context.groups.world, {count})[0]) {
    verdict.reject(0, "this rank declares {} parameters, another a different number", count);
  }
  throw_together(context, specs, verdict);

  std::vector<std::int64_t> fingerprints;
  for (const ParameterSpec& spec : specs) fingerprints.push_back(fingerprint_of(spec));
  const auto same = equal_on_all(context, *context.groups.world, fingerprints);
  std::vector<std::int64_t> places;
  for (std::size_t p = 0; p < specs.size(); ++p) {
    Fingerprint place;
    const ParameterSpec& spec = specs[p];
    for (const std::int64_t value : {spec.row_begin, spec.row_end, spec.col_begin, spec.col_end, layout.slots[p].begin,
                                     layout.slots[p].end, std::int64_t{spec.counted}}) {
      place.add(value);
    }
    places.push_back(place.value());
  }
  const auto replicated = equal_on_all(context, *context.groups.dp, places);
  for (std::int64_t p = 0; p < count; ++p) {
    const auto i = static_cast<std::size_t>(p);
    if (!same[i]) verdict.reject(p, "parameter {} is \"{}\" here but not on every rank", p, specs[i].name);
    if (!replicated[i]) verdict.reject(p, "data-parallel replicas hold different blocks of \"{}\"", specs[i].name);
  }
  throw_together(context, specs, verdict);
}

std::vector<std::int64_t> owned_elements(const Context& context, const std::vector<ParameterSpec>& specs,
                                         const FlatLayout& layout) {
  std::vector<std::int64_t> owned(specs.size(), 0);
  for (const Bucket& bucket : layout.buckets) {
    const Range shard = shard_of(bucket, context.groups.dp_size(), context.groups.dp_rank());
    for (std::size_t p = 0; p < specs.size(); ++p) {
      if (specs[p].counted) owned[p] += intersect({layout.slots[p].begin, layout.slots[p].end}, shard).size();
    }
  }
  all_reduce_host(context, *context.groups.world, owned);
  return owned;
}

/// Blocks of all ranks of the tensor-parallel group: entry r * specs.size() + p.
std::vector<Block> gather_blocks(const Context& context, const std::vector<ParameterSpec>& specs) {
  std::vector<std::int64_t> mine;
  for (const ParameterSpec& spec : specs) {
    for (const std::int64_t word :
         {spec.row_begin, spec.row_end, spec.col_begin, spec.col_end, std::int64_t{spec.counted}}) {
      mine.push_back(word);
    }
  }
  const auto own = to_device(context.stream, mine, "the ownership manifest");
  Buffer<std::int64_t> gathered(context.stream, own.size() * context.groups.tp_size(), "the ownership manifest");
  context.groups.tp->all_gather<std::int64_t>(context.stream, own.view(), gathered.view());
  const std::vector<std::int64_t> all = to_host(context.stream, gathered.view());
  std::vector<Block> blocks;
  for (std::size_t i = 0; i < all.size(); i += kBlockWords) {
    blocks.push_back({all[i], all[i + 1], all[i + 2], all[i + 3], all[i + 4]});
  }
  return blocks;
}

void check_blocks(std::int64_t p, const ParameterSpec& spec, const std::vector<Block>& blocks, std::size_t count,
                  Verdict& verdict) {
  const std::size_t ranks = blocks.size() / count;
  for (std::size_t a = 0; a < ranks; ++a) {
    const Block& left = blocks[a * count + static_cast<std::size_t>(p)];
    for (std::size_t b = a + 1; b < ranks; ++b) {
      const Block& right = blocks[b * count + static_cast<std::size_t>(p)];
      if (!left.overlaps(right)) continue;
      if (left.counted != 0 && right.counted != 0) {
        verdict.reject(p, "\"{}\" is counted twice: the blocks of tensor-parallel ranks {} and {} overlap", spec.name,
                       a, b);
      }
      if (spec.sum_over_tp && !left.same_place(right)) {
        verdict.reject(p, "the copies of \"{}\" on tensor-parallel ranks {} and {} overlap without being equal",
                       spec.name, a, b);
      }
    }
  }
}

std::vector<Ownership::SharedCopies> find_shared_copies(const Context& context, const std::vector<ParameterSpec>& specs,
                                                        const std::vector<Block>& blocks) {
  const std::size_t ranks = static_cast<std::size_t>(context.groups.tp_size()), count = specs.size();
  // For each parameter, every rank's lowest peer with the same block: ranks with the same entry add up.
  std::map<std::vector<int>, std::vector<std::int64_t>> by_colors;
  for (std::size_t p = 0; p < count; ++p) {
    if (!specs[p].sum_over_tp) continue;
    std::vector<int> colors(ranks);
    for (std::size_t r = 0; r < ranks; ++r) {
      std::size_t lowest = 0;
      while (!blocks[lowest * count + p].same_place(blocks[r * count + p])) ++lowest;
      colors[r] = static_cast<int>(lowest);
    }
    by_colors[colors].push_back(static_cast<std::int64_t>(p));
  }
  std::vector<Ownership::SharedCopies> shared;
  const auto rank = static_cast<std::size_t>(context.groups.tp_rank());
  for (auto& [colors, parameters] : by_colors) {
    const bool whole = std::all_of(colors.begin(), colors.end(), [](int color) { return color == 0; });
    std::unique_ptr<Communicator> group;
    if (!whole) group = context.groups.tp->split(colors[rank], context.groups.tp_rank(), "copies");
    if (ranks > 1 && (whole || group->size() > 1)) shared.push_back({std::move(parameters), std::move(group)});
  }
  return shared;
}

}  // namespace

AngleGroups make_angle_groups(const std::vector<ParameterSpec>& specs, AngleScope scope) {
  AngleGroups groups;
  for (const ParameterSpec& spec : specs) {
    if (spec.frozen) {
      groups.of_parameter.push_back(-1);
      continue;
    }
    const std::string name = scope == AngleScope::kTensor  ? spec.name
                             : scope == AngleScope::kLayer ? spec.layer
                                                           : std::string("global");
    const auto place = std::find(groups.names.begin(), groups.names.end(), name);
    groups.of_parameter.push_back(place - groups.names.begin());
    if (place == groups.names.end()) groups.names.push_back(name);
  }
  return groups;
}

Range shard_of(const Bucket& bucket, int ranks, int rank) {
  const std::int64_t size = div_exact(bucket.end - bucket.begin, ranks);
  return {bucket.begin + rank * size, bucket.begin + (rank + 1) * size};
}

Ownership make_ownership(const Context& context, const std::vector<ParameterSpec>& specs, const FlatLayout& layout) {
  for (const Bucket& bucket : layout.buckets) {
    REPRISE_CHECK((bucket.end - bucket.begin) % (16 * context.groups.dp_size()) == 0,
                  "a bucket of {} elements was not laid out for {} data-parallel ranks", bucket.end - bucket.begin,
                  context.groups.dp_size());
  }
  check_same_declarations(context, specs, layout);
  const auto owned = owned_elements(context, specs, layout);
  const auto blocks = gather_blocks(context, specs);
  Verdict verdict;
  for (std::size_t p = 0; p < specs.size(); ++p) {
    check_blocks(static_cast<std::int64_t>(p), specs[p], blocks, specs.size(), verdict);
    if (owned[p] != specs[p].global_size()) {
      verdict.reject(static_cast<std::int64_t>(p), "\"{}\" has {} elements, but those counted over all ranks are {}",
                     specs[p].name, specs[p].global_size(), owned[p]);
    }
  }
  throw_together(context, specs, verdict);
  return {find_shared_copies(context, specs, blocks)};
}

}  // namespace reprise
