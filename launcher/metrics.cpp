#include "launcher/metrics.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/error.hpp"

namespace reprise {

namespace {

using Line = nlohmann::ordered_json;

/// JSON knows neither NaN nor infinity.
Line number(double value) {
  return std::isfinite(value) ? Line(value) : Line(nullptr);
}

Line to_line(const StepMetrics& metrics) {
  Line line;
  line["step"] = metrics.step;
  line["loss"] = number(metrics.loss);
  line["lr"] = number(metrics.lr);
  line["grad_norm"] = number(metrics.grad_norm);
  if (metrics.angles) {
    line["angle_mean"] = number(metrics.angles->mean);
    line["angle_max"] = number(metrics.angles->max);
    line["clipped_share"] = number(metrics.angles->clipped_share);
    Line quantiles = Line::array();
    for (const double quantile : metrics.angles->quantiles) quantiles.push_back(number(quantile));
    line["angle_quantiles"] = quantiles;
  }
  line["skipped"] = metrics.skipped;
  line["tokens"] = metrics.tokens;
  if (metrics.out_of_set_mass) line["out_of_set_mass"] = number(*metrics.out_of_set_mass);
  line["head_ms"] = number(metrics.head_ms);
  line["step_ms"] = number(metrics.step_ms);
  line["tokens_per_second"] = number(metrics.tokens_per_second);
  line["memory_bytes"] = metrics.memory_bytes;
  return line;
}

}  // namespace

struct MetricsFile::Impl {
  std::filesystem::path path;
  int descriptor = -1;
  std::int64_t size = 0;

  [[noreturn]] void refuse(const char* what) const {
    fail(ErrorKind::kDisk, "{}: cannot {}: {}", path.string(), what, std::strerror(errno));
  }

  void open(std::int64_t keep_bytes) {
    descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (descriptor < 0) refuse("open it for writing; check run.folder and its permissions");
    struct stat status {};
    if (::fstat(descriptor, &status) != 0) refuse("read its size");
    size = std::min<std::int64_t>(keep_bytes, status.st_size);
    if (::ftruncate(descriptor, size) != 0) refuse("cut it");
    if (::lseek(descriptor, size, SEEK_SET) != size) refuse("seek");
  }

  void append(const Line& line) {
    const std::string text = line.dump(-1, ' ', false, Line::error_handler_t::replace) + "\n";
    for (std::size_t done = 0; done < text.size();) {
      const ssize_t count = ::write(descriptor, text.data() + done, text.size() - done);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) refuse("write to it");
      done += static_cast<std::size_t>(count);
    }
    size += static_cast<std::int64_t>(text.size());
  }
};

MetricsFile::MetricsFile(std::filesystem::path path, std::int64_t keep_bytes) : impl_(std::make_unique<Impl>()) {
  impl_->path = std::move(path);
  impl_->open(keep_bytes);
  if (impl_->size == 0) {
    Line line;
    line["schema"] = 1;
    line["loss"] = "nats";
    line["angles"] = "degrees";
    line["angle_quantiles"] = {0.05, 0.25, 0.5, 0.75, 0.95};
    impl_->append(line);
  }
}

MetricsFile::~MetricsFile() {
  if (impl_->descriptor >= 0) ::close(impl_->descriptor);
}

void MetricsFile::write(const StepMetrics& metrics) {
  impl_->append(to_line(metrics));
}

void MetricsFile::write_evaluation(std::int64_t step, const std::string& prefix, double loss, double top1,
                                   std::int64_t tokens) {
  Line line;
  line["step"] = step;
  line["eval"] = prefix;
  line["loss"] = number(loss);
  line["top1"] = number(top1);
  line["tokens"] = tokens;
  impl_->append(line);
}

std::int64_t MetricsFile::bytes() const {
  return impl_->size;
}

}  // namespace reprise
