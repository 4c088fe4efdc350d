#include "parallel/untyped.hpp"

#include <numeric>

namespace reprise::untyped {

namespace {

using detail::Counts;

template <class T>
VectorView<T> view_of(void* data, std::int64_t count) {
  return {static_cast<T*>(data), count};
}
template <class T>
VectorView<const T> view_of(const void* data, std::int64_t count) {
  return {static_cast<const T*>(data), count};
}

std::int64_t total_of(Counts counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}
std::int64_t own_of(const Communicator& group, Counts counts) {
  return counts[static_cast<std::size_t>(group.rank())];
}

/// body(T{}) with the C++ type of `dtype`.
template <class Body>
void with_type_of(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32: return body(float{});
    case DType::kFloat64: return body(double{});
    case DType::kBFloat16: return body(BFloat16{});
    case DType::kInt32: return body(std::int32_t{});
    case DType::kInt64: return body(std::int64_t{});
    case DType::kUInt8: return body(std::uint8_t{});
    case DType::kUInt32: return body(std::uint32_t{});
    case DType::kUInt64: return body(std::uint64_t{});
  }
}

}  // namespace

void all_reduce(Communicator& group, const Stream& stream, void* buffer, std::int64_t count, DType dtype, ReduceOp op) {
  with_type_of(dtype, [&]<class T>(T) { group.all_reduce<T>(stream, view_of<T>(buffer, count), op); });
}

void all_gather(Communicator& group, const Stream& stream, const void* input, void* output, Counts counts,
                DType dtype) {
  with_type_of(dtype, [&]<class T>(T) {
    group.all_gather<T>(stream, view_of<T>(input, own_of(group, counts)), view_of<T>(output, total_of(counts)), counts);
  });
}

void reduce_scatter(Communicator& group, const Stream& stream, const void* input, void* output, Counts counts,
                    DType dtype) {
  with_type_of(dtype, [&]<class T>(T) {
    group.reduce_scatter<T>(stream, view_of<T>(input, total_of(counts)), view_of<T>(output, own_of(group, counts)),
                            counts);
  });
}

void all_to_all(Communicator& group, const Stream& stream, const void* send, Counts send_counts, void* receive,
                Counts receive_counts, DType dtype) {
  with_type_of(dtype, [&]<class T>(T) {
    group.all_to_all<T>(stream, view_of<T>(send, total_of(send_counts)), send_counts,
                        view_of<T>(receive, total_of(receive_counts)), receive_counts);
  });
}

void broadcast(Communicator& group, const Stream& stream, void* buffer, std::int64_t count, DType dtype, int root) {
  with_type_of(dtype, [&]<class T>(T) { group.broadcast<T>(stream, view_of<T>(buffer, count), root); });
}

}  // namespace reprise::untyped
