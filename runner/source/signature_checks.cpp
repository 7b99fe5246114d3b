// Compares what config.json, the model and the golden cases say about inputs and outputs.
#include <algorithm>

#include "error.hpp"
#include "input_checks.hpp"
#include "python_text.hpp"
#include "verdict.hpp"

namespace packager {
namespace {

bool is_fixed(const Dim& dim) { return std::holds_alternative<std::int64_t>(dim); }

bool is_named(const Dim& dim) { return std::holds_alternative<std::string>(dim); }

bool are_equal(const Dim& first, const Dim& second) {
    if (first.index() != second.index()) return false;
    if (is_fixed(first)) return std::get<std::int64_t>(first) == std::get<std::int64_t>(second);
    return !is_named(first) || std::get<std::string>(first) == std::get<std::string>(second);
}

// "[1, 'batch', None]", as Python writes a list
std::string describe_list(const std::vector<Dim>& shape) {
    std::string text = "[";
    for (const Dim& dim : shape) {
        text += text.size() == 1 ? "" : ", ";
        text += is_fixed(dim)   ? std::to_string(std::get<std::int64_t>(dim))
                : is_named(dim) ? repr(std::get<std::string>(dim))
                                : "None";
    }
    return text + "]";
}

// Whether two shapes have the same rank, and the same dims wherever both declare one.
bool do_shapes_agree(const std::vector<Dim>& declared, const std::vector<Dim>& actual) {
    return std::equal(declared.begin(), declared.end(), actual.begin(), actual.end(),
                      [](const Dim& dim, const Dim& size) {
                          if (std::holds_alternative<AnySize>(dim) || are_equal(dim, size)) return true;
                          return !is_fixed(size) && !is_named(dim);
                      });
}

template <typename Tensors>
std::vector<std::string> list_names(const Tensors& tensors) {
    std::vector<std::string> names;
    names.reserve(tensors.size());
    for (const auto& tensor : tensors) names.push_back(tensor.name);
    return names;
}

std::string describe_type(DType dtype, const std::vector<Dim>& shape) {
    return std::string(name_of(dtype)) + describe_list(shape);
}

void check_tensors(const std::string& path, const std::string& kind, const std::vector<TensorSpec>& specs,
                   const std::vector<ModelTensor>& tensors, std::vector<std::string>& problems) {
    if (list_names(tensors) != list_names(specs)) {
        problems.push_back(path + " has the " + kind + " " + repr(list_names(tensors)) + ", and config.json has " +
                           repr(list_names(specs)));
        return;
    }
    for (std::size_t index = 0; index < specs.size(); ++index) {
        const auto& [name, dtype, shape] = tensors[index];
        if (dtype == specs[index].dtype && do_shapes_agree(specs[index].shape, shape)) continue;
        std::string problem = path;
        problem.append(" has ").append(name).append(" as ").append(describe_type(dtype, shape));
        problem.append(", and config.json as ").append(describe_type(specs[index].dtype, specs[index].shape));
        problems.push_back(std::move(problem));
    }
}

// Replaces the named dims of a shape by sizes; the first tensor with a name adds its size to `sizes`.
std::vector<Dim> resolve_dims(const std::vector<Dim>& shape, const Shape& actual, Sizes& sizes) {
    std::vector<Dim> resolved = shape;
    if (shape.size() != actual.size()) return resolved;
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        if (is_named(shape[axis])) {
            resolved[axis] = sizes.try_emplace(std::get<std::string>(shape[axis]), actual[axis]).first->second;
        }
    }
    return resolved;
}

std::string describe_names(const Arrays& arrays) {
    std::string text;
    for (const auto& [name, array] : arrays) text += (text.empty() ? "" : ", ") + name;
    return text;
}

void check_arrays(const std::string& case_name, const std::vector<TensorSpec>& specs, const Arrays& arrays,
                  Sizes& sizes, std::vector<std::string>& problems) {
    const bool has_all = std::all_of(specs.begin(), specs.end(),
                                     [&](const TensorSpec& spec) { return find(arrays, spec.name) != nullptr; });
    if (!has_all || arrays.size() != specs.size()) {
        problems.push_back("evidence: case " + case_name + " has " + describe_names(arrays));
        return;
    }
    for (const TensorSpec& spec : specs) {
        const Array& array = *find(arrays, spec.name);
        const std::vector<Dim> shape = resolve_dims(spec.shape, array.shape, sizes);
        const std::vector<Dim> actual(array.shape.begin(), array.shape.end());
        if (array.dtype == spec.passed_dtype() && do_shapes_agree(shape, actual)) continue;
        problems.push_back("evidence: case " + case_name + " has " + spec.name + " as " +
                           std::string(name_of(array.dtype)) + describe(array.shape) + ", and config.json as " +
                           describe_type(spec.dtype, spec.shape));
    }
}

// config.json may leave sizes open that the model declares.
std::string check_declared_shape(const ModelTensor& tensor, const std::vector<ReferenceCase>& cases) {
    for (const ReferenceCase& reference : cases) {
        const auto output = std::find_if(reference.outputs.begin(), reference.outputs.end(),
                                         [&](const ReferenceOutput& entry) { return entry.name == tensor.name; });
        if (output == reference.outputs.end()) continue;
        const Shape& shape = output->array.shape;
        for (std::size_t axis = 0; axis < std::min(shape.size(), tensor.shape.size()); ++axis) {
            if (!is_fixed(tensor.shape[axis]) || std::get<std::int64_t>(tensor.shape[axis]) == shape[axis]) continue;
            return "the model declares " + tensor.name + " as " + describe_list(tensor.shape) + ", and case " +
                   reference.name + " has " + describe(shape);
        }
    }
    return "";
}

}  // namespace

std::vector<std::string> check_model(const Config& config, const Session& session) {
    std::vector<std::string> problems;
    check_tensors(config.model, "inputs", config.signature.inputs, session.inputs(), problems);
    check_tensors(config.model, "outputs", config.signature.outputs, session.outputs(), problems);
    return problems;
}

std::vector<std::string> check_cases(const Config& config, const Session* session,
                                     const std::vector<ReferenceCase>& cases) {
    std::vector<std::string> problems;
    for (const ReferenceCase& reference : cases) {
        Sizes sizes;
        Arrays outputs;
        for (const ReferenceOutput& output : reference.outputs) outputs.emplace_back(output.name, output.array);
        check_arrays(reference.name, config.signature.inputs, reference.inputs, sizes, problems);
        check_arrays(reference.name, config.signature.outputs, outputs, sizes, problems);
    }
    if (!problems.empty() || session == nullptr) return problems;
    for (const ModelTensor& tensor : session->outputs()) {
        const std::string problem = check_declared_shape(tensor, cases);
        if (!problem.empty()) problems.push_back(problem);
    }
    return problems;
}

}  // namespace packager
