#include "loss/hdf5_file.hpp"

#include <hdf5.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "core/math.hpp"

namespace reprise {

namespace {

static_assert(std::is_same_v<hid_t, std::int64_t> && std::is_same_v<herr_t, int>);

std::mutex& library_mutex() {
  static std::mutex mutex;
  return mutex;
}

void check(herr_t result, const std::string& what) {
  REPRISE_CHECK(result >= 0, "HDF5 cannot {}", what);
}

std::size_t bytes_of(Hdf5Type type) {
  constexpr std::array<std::size_t, 5> kBytes = {1, 4, 8, 4, 2};
  return kBytes[static_cast<std::size_t>(type)];
}

std::string_view name_of(Hdf5Type type) {
  constexpr std::array<std::string_view, 5> kNames = {"uint8", "uint32", "uint64", "float32", "float16"};
  return kNames[static_cast<std::size_t>(type)];
}

/// The type on disk; on the little-endian machines that we run on, in memory too.
Hdf5Handle make_type(Hdf5Type type) {
  const std::array<hid_t, 5> base = {H5T_STD_U8LE, H5T_STD_U32LE, H5T_STD_U64LE, H5T_IEEE_F32LE, H5T_IEEE_F32LE};
  Hdf5Handle copy(H5Tcopy(base[static_cast<std::size_t>(type)]), H5Tclose, "copy a type");
  if (type == Hdf5Type::kFloat16) {
    check(H5Tset_fields(copy.get(), 15, 10, 5, 0, 10), "make float16");
    check(H5Tset_size(copy.get(), 2), "make float16");
    check(H5Tset_ebias(copy.get(), 15), "make float16");
  }
  return copy;
}

hid_t create_in_memory() {
  constexpr std::size_t kGrowBytes = std::size_t{1} << 20;
  const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "make a property list");
  check(H5Pset_fapl_core(access.get(), kGrowBytes, 0), "keep a file in memory");
  check(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_V110), "set the format's version");
  const Hdf5Handle creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose, "make a property list");
  check(H5Pset_obj_track_times(creation.get(), false), "leave out times");
  const hid_t file = H5Fcreate("replay-store-shard", H5F_ACC_TRUNC, creation.get(), access.get());
  REPRISE_CHECK(file >= 0, "HDF5 cannot make a file in memory");
  return file;
}

}  // namespace

Hdf5Handle::Hdf5Handle(std::int64_t id, Close close, const std::string& what) : id_(id), close_(close) {
  REPRISE_CHECK(id >= 0, "HDF5 cannot {}", what);
}

Hdf5Library::Hdf5Library() : lock_(library_mutex()) {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // we report errors, in our words
}

// ---- writing
// ----------------------------------------------------------------------------------------------------------

Hdf5Image::Hdf5Image() : file_(create_in_memory()) {}

Hdf5Image::~Hdf5Image() {
  if (file_ >= 0) H5Fclose(file_);
}

void Hdf5Image::write(const char* name, const void* values, std::int64_t size, Hdf5Type type) {
  const Hdf5Handle element = make_type(type);
  const auto extent = static_cast<hsize_t>(size);
  const Hdf5Handle space(H5Screate_simple(1, &extent, nullptr), H5Sclose, "make a dataspace");
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "make a property list");
  const std::uint64_t all_ones = std::numeric_limits<std::uint64_t>::max();
  check(H5Pset_fill_value(creation.get(), element.get(), &all_ones), "set the fill value");
  check(H5Pset_obj_track_times(creation.get(), false), "leave out times");
  if (size > 0) {
    const auto chunk = static_cast<hsize_t>(std::min(size, kHdf5ChunkElements));
    check(H5Pset_chunk(creation.get(), 1, &chunk), "set chunks");
    check(H5Pset_shuffle(creation.get()), "set shuffle");
    check(H5Pset_deflate(creation.get(), 1), "set deflate");
    check(H5Pset_fletcher32(creation.get()), "set Fletcher32");
  }
  const Hdf5Handle dataset(
      H5Dcreate2(file_, name, element.get(), space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT), H5Dclose,
      fmt::format("make dataset {}", name));
  if (size == 0) return;
  check(H5Dwrite(dataset.get(), element.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values),
        fmt::format("write dataset {}", name));
}

void Hdf5Image::write_attribute(const char* name, const std::string& value) {
  const Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "copy a type");
  check(H5Tset_size(type.get(), value.size()), "size a string");
  const Hdf5Handle space(H5Screate(H5S_SCALAR), H5Sclose, "make a dataspace");
  const Hdf5Handle attribute(H5Acreate2(file_, name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
                             fmt::format("make attribute {}", name));
  check(H5Awrite(attribute.get(), type.get(), value.data()), fmt::format("write attribute {}", name));
}

std::string Hdf5Image::finish() {
  check(H5Fflush(file_, H5F_SCOPE_LOCAL), "flush a file in memory");
  // Not H5Fget_file_image: in HDF5 1.10 it changes a flag of the superblock after its checksum was made.
  void* memory = nullptr;  // the driver's pointer to its buffer
  check(H5Fget_vfd_handle(file_, H5P_DEFAULT, &memory), "find a file in memory");
  const char* bytes = *static_cast<const char**>(memory);
  // The buffer has spare room; the superblock (version 2, 8-byte addresses) says where the file ends.
  REPRISE_CHECK(bytes[8] == 2 && bytes[9] == 8, "HDF5 wrote superblock version {}", static_cast<int>(bytes[8]));
  std::uint64_t end = 0;
  std::memcpy(&end, bytes + 28, sizeof(end));
  std::string image(bytes, end);
  check(H5Fclose(std::exchange(file_, -1)), "close a file in memory");
  return image;
}

// ---- reading
// ----------------------------------------------------------------------------------------------------------

namespace {

hid_t open_for_reading(const std::filesystem::path& path) {
  std::error_code ignored;
  require(std::filesystem::is_regular_file(path, ignored), ErrorKind::kData, "{}: no such file", path.string());
  const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "make a property list");
  check(H5Pset_file_locking(access.get(), false, true), "do without locks");  // finished shards never change
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get());
  require(file >= 0, ErrorKind::kData, "{}: damaged, or not an HDF5 file", path.string());
  return file;
}

/// Runs `body`; where HDF5 fails on a file that we did not write, the file is to blame.
template <class Body>
auto blame_file(const std::filesystem::path& path, const char* name, const Body& body) {
  try {
    return body();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kInternal) throw;
    fail(ErrorKind::kData, "{}: {} is damaged: {}", path.string(), name, error.what());
  }
}

/// Why the chunks are not as we would have written them, or nothing.
std::string refuse_chunks(hid_t dataset, hid_t creation, hid_t space, hsize_t extent) {
  if (H5Pget_layout(creation) != H5D_CHUNKED) return "is not stored in chunks";
  hsize_t chunk = 0, stored = 0;
  if (H5Pget_chunk(creation, 1, &chunk) != 1 || chunk == 0 || chunk > (hsize_t{1} << 22)) return "has odd chunks";
  const int filters = H5Pget_nfilters(creation);
  for (int i = 0; i < filters; ++i) {
    unsigned int flags = 0, config = 0;
    std::size_t values = 0;
    const H5Z_filter_t filter =
        H5Pget_filter2(creation, static_cast<unsigned>(i), &flags, &values, nullptr, 0, nullptr, &config);
    const bool known = filter == H5Z_FILTER_SHUFFLE || filter == H5Z_FILTER_DEFLATE || filter == H5Z_FILTER_FLETCHER32;
    if (!known) return "has a filter other than shuffle, deflate and Fletcher32";
  }
  // An absent chunk would read as the fill value without an error.
  const bool whole = H5Dget_num_chunks(dataset, space, &stored) >= 0 && stored == (extent + chunk - 1) / chunk;
  return whole ? std::string() : "lacks chunks";
}

/// Why a dataset is not one that we would have written, or nothing; its elements in `size`.
std::string refuse_dataset(hid_t dataset, Hdf5Type type, std::int64_t file_bytes, std::int64_t& size) {
  const Hdf5Handle stored(H5Dget_type(dataset), H5Tclose, "read a type");
  const Hdf5Handle expected = make_type(type);
  if (H5Tequal(stored.get(), expected.get()) <= 0) return fmt::format("is not of {}", name_of(type));
  const Hdf5Handle space(H5Dget_space(dataset), H5Sclose, "read a dataspace");
  hsize_t extent = 0;
  if (H5Sget_simple_extent_ndims(space.get()) != 1 || H5Sget_simple_extent_dims(space.get(), &extent, nullptr) != 1) {
    return "is not one-dimensional";
  }
  // Deflate packs at most 1032 : 1; so a small file cannot ask for a large allocation.
  const auto most = static_cast<hsize_t>(file_bytes) * 1040 / bytes_of(type) + kHdf5ChunkElements;
  if (extent > most) return fmt::format("claims {} elements, more than the file can hold", extent);
  size = static_cast<std::int64_t>(extent);
  const Hdf5Handle creation(H5Dget_create_plist(dataset), H5Pclose, "read a property list");
  return size == 0 ? std::string() : refuse_chunks(dataset, creation.get(), space.get(), extent);
}

}  // namespace

Hdf5File::Hdf5File(std::filesystem::path path)
    : path_(std::move(path)), file_(open_for_reading(path_), H5Fclose, "open a file") {
  std::error_code error;
  bytes_ = static_cast<std::int64_t>(std::filesystem::file_size(path_, error));
  require(!error, ErrorKind::kData, "{}: {}", path_.string(), error.message());
}

void Hdf5File::refuse(const char* name, std::string_view reason) const {
  fail(ErrorKind::kData, "{}: dataset {} {}", path_.string(), name, reason);
}

bool Hdf5File::contains(const char* name) const {
  if (H5Lexists(file_.get(), name, H5P_DEFAULT) <= 0) return false;
  H5L_info_t link{};
  // A soft or external link could lead anywhere.
  return H5Lget_info(file_.get(), name, &link, H5P_DEFAULT) >= 0 && link.type == H5L_TYPE_HARD;
}

std::string Hdf5File::attribute(const char* name) const {
  if (H5Aexists(file_.get(), name) <= 0) return {};
  return blame_file(path_, name, [&]() -> std::string {
    const Hdf5Handle attribute(H5Aopen(file_.get(), name, H5P_DEFAULT), H5Aclose, "open an attribute");
    const Hdf5Handle type(H5Aget_type(attribute.get()), H5Tclose, "read a type");
    const Hdf5Handle space(H5Aget_space(attribute.get()), H5Sclose, "read a dataspace");
    const std::size_t bytes = H5Tget_size(type.get());
    const bool is_string = H5Tget_class(type.get()) == H5T_STRING && H5Tis_variable_str(type.get()) == 0;
    if (!is_string || bytes == 0 || bytes > 4096 || H5Sget_simple_extent_npoints(space.get()) != 1) return {};
    std::string value(bytes, '\0');
    if (H5Aread(attribute.get(), type.get(), value.data()) < 0) return {};
    return value;
  });
}

std::int64_t Hdf5File::size(const char* name, Hdf5Type type) const {
  if (!contains(name)) refuse(name, "is missing");
  const hid_t opened = H5Dopen2(file_.get(), name, H5P_DEFAULT);
  if (opened < 0) refuse(name, "is damaged or not a dataset");
  const Hdf5Handle dataset(opened, H5Dclose, "open a dataset");
  std::int64_t size = 0;
  const std::string reason = blame_file(path_, name, [&] { return refuse_dataset(dataset.get(), type, bytes_, size); });
  if (!reason.empty()) refuse(name, reason);
  return size;
}

std::int64_t Hdf5File::read(const char* name, void* values, std::int64_t size, Hdf5Type type) const {
  return blame_file(path_, name, [&] {
    const Hdf5Handle dataset(H5Dopen2(file_.get(), name, H5P_DEFAULT), H5Dclose, "open a dataset");
    const Hdf5Handle element = make_type(type);
    const Hdf5Handle space(H5Dget_space(dataset.get()), H5Sclose, "read a dataspace");
    auto* bytes = static_cast<std::uint8_t*>(values);
    // Chunk by chunk, so that damage can be told from where it starts.
    for (std::int64_t begin = 0; begin < size; begin += kHdf5ChunkElements) {
      const auto offset = static_cast<hsize_t>(begin);
      const auto count = static_cast<hsize_t>(std::min(kHdf5ChunkElements, size - begin));
      check(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, &offset, nullptr, &count, nullptr), "select a chunk");
      const Hdf5Handle memory(H5Screate_simple(1, &count, nullptr), H5Sclose, "make a dataspace");
      void* target = bytes + static_cast<std::size_t>(begin) * bytes_of(type);
      if (H5Dread(dataset.get(), element.get(), memory.get(), space.get(), H5P_DEFAULT, target) < 0) return begin;
    }
    return size;
  });
}

}  // namespace reprise
