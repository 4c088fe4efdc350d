#include "optimizer/optimizer_options.hpp"

#include <cmath>

#include "core/error.hpp"

namespace reprise {

AngleScope parse_angle_scope(const std::string& name) {
  if (name == "tensor") return AngleScope::kTensor;
  if (name == "layer") return AngleScope::kLayer;
  if (name == "global") return AngleScope::kGlobal;
  fail(ErrorKind::kUsage, "optimizer.angle_scope = \"{}\" is not known; use \"tensor\", \"layer\" or \"global\"", name);
}

Obtuse parse_obtuse(const std::string& name) {
  if (name == "keep") return Obtuse::kKeep;
  if (name == "drop") return Obtuse::kDrop;
  if (name == "project") return Obtuse::kProject;
  if (name == "reflect") return Obtuse::kReflect;
  if (name == "rotate") return Obtuse::kRotate;
  fail(ErrorKind::kUsage,
       "optimizer.obtuse = \"{}\" is not known; use \"keep\", \"drop\", \"project\", \"reflect\" or \"rotate\"", name);
}

// Keys that the chosen optimizer does not use are not judged.
void check_options(const OptimizerOptions& options) {
  require(options.name == "moclip" || options.name == "adamw", ErrorKind::kUsage,
          "optimizer.name = \"{}\" is not known; use \"moclip\" or \"adamw\"", options.name);
  const auto is_beta = [](double beta) { return beta >= 0.0 && beta < 1.0; };
  require(is_beta(options.beta1) && is_beta(options.beta2), ErrorKind::kUsage,
          "optimizer.betas = [{}, {}]: both must be in [0, 1)", options.beta1, options.beta2);
  require(options.name != "adamw" || (std::isfinite(options.eps) && options.eps > 0.0), ErrorKind::kUsage,
          "optimizer.eps = {} must be a finite number > 0", options.eps);
  require(std::isfinite(options.weight_decay) && options.weight_decay >= 0.0, ErrorKind::kUsage,
          "optimizer.weight_decay = {} must be a finite number >= 0", options.weight_decay);
  require(std::isfinite(options.clip_norm) && options.clip_norm >= 0.0, ErrorKind::kUsage,
          "optimizer.clip_norm = {} must be a finite number >= 0; 0 turns clipping off", options.clip_norm);
  require(
      options.name != "moclip" || (options.max_angle > 0.0 && options.max_angle <= 90.0) || options.max_angle == 180.0,
      ErrorKind::kUsage, "optimizer.max_angle = {} must be in (0, 90] degrees, or 180 to turn the cap off",
      options.max_angle);
  require(options.zero_stage >= 0 && options.zero_stage <= 2, ErrorKind::kUsage,
          "optimizer.zero_stage = {} is not known; use 0, 1 or 2", options.zero_stage);
}

}  // namespace reprise
