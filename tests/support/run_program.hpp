#pragma once

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace reprise {

/// A program of this build that a test starts and waits for. Its stdout and stderr go to a file.
class RunningProgram {
 public:
  struct Options {
    std::map<std::string, std::string> environment = {};
    std::filesystem::path output;         ///< what it prints
    std::int64_t largest_file_bytes = 0;  ///< > 0: writes beyond fail, as on a full disk
  };

  RunningProgram(const std::vector<std::string>& words, const Options& options) : output_(options.output) {
    std::vector<char*> arguments;
    for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    process_ = ::fork();
    if (process_ < 0) throw std::runtime_error("fork failed");
    if (process_ > 0) return;
    const int file = ::open(output_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    ::dup2(file, STDOUT_FILENO);
    ::dup2(file, STDERR_FILENO);
    ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
    for (const auto& [name, value] : options.environment) ::setenv(name.c_str(), value.c_str(), 1);
    if (options.largest_file_bytes > 0) {
      ::signal(SIGXFSZ, SIG_IGN);
      const auto bytes = static_cast<rlim_t>(options.largest_file_bytes);
      const rlimit limit{bytes, bytes};
      ::setrlimit(RLIMIT_FSIZE, &limit);
    }
    ::execvp(arguments[0], arguments.data());
    ::_exit(127);
  }
  ~RunningProgram() {
    if (process_ > 0) {
      ::kill(process_, SIGKILL);
      ::waitpid(process_, nullptr, 0);
    }
  }
  RunningProgram(const RunningProgram&) = delete;
  RunningProgram& operator=(const RunningProgram&) = delete;

  void signal(int number) const { ::kill(process_, number); }
  /// Exit code, or 128 + signal.
  int wait() {
    int status = 0;
    ::waitpid(process_, &status, 0);
    process_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  [[nodiscard]] std::string printed() const {
    std::ifstream file(output_);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }

 private:
  std::filesystem::path output_;
  pid_t process_ = -1;
};

/// What a program that has ended left.
struct ProgramResult {
  int exit_code = 0;  ///< or 128 + signal
  std::string printed;
};

inline ProgramResult run_program(const std::vector<std::string>& words, const RunningProgram::Options& options) {
  RunningProgram program(words, options);
  const int exit_code = program.wait();
  return {exit_code, program.printed()};
}

/// Waits until `ready` says so; false after some seconds.
inline bool wait_until(const std::function<bool()>& ready) {
  for (int i = 0; i < 1500; ++i) {
    if (ready()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return false;
}

}  // namespace reprise
