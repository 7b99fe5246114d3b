#include "input_checks.hpp"

#include <algorithm>
#include <vector>

#include "error.hpp"

namespace packager {
namespace {

std::string describe_dim(const Dim& dim) {
    if (const auto* size = std::get_if<std::int64_t>(&dim)) return std::to_string(*size);
    const auto* name = std::get_if<std::string>(&dim);
    return name == nullptr ? "?" : *name;
}

std::string describe_dims(const TensorSpec& tensor) {
    std::string text = "[";
    for (const Dim& dim : tensor.shape) text += (text.size() == 1 ? "" : ", ") + describe_dim(dim);
    return text + "]";
}

std::string join(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
}

Error explain_names(const Signature& signature, const Arrays& arrays) {
    std::vector<std::string> names, given, unknown;
    names.reserve(signature.inputs.size());
    for (const TensorSpec& tensor : signature.inputs) names.push_back(tensor.name);
    for (const auto& [name, array] : arrays) {
        given.push_back(name);
        if (std::find(names.begin(), names.end(), name) == names.end()) unknown.push_back(name);
    }
    const std::string why = "the inputs are " + join(names) + "; given: " + (given.empty() ? "none" : join(given));
    const std::string hint = unknown.empty() ? "" : did_you_mean(unknown.front(), names);
    return data_does_not_fit("inputs", hint.empty() ? why : why + "; " + hint);
}

void check_dtype(const TensorSpec& tensor, const Array& array) {
    if (array.dtype == tensor.passed_dtype()) return;
    const std::string actual = std::string(name_of(array.dtype)) + describe(array.shape);
    const std::string wanted(name_of(tensor.passed_dtype()));
    throw data_does_not_fit(tensor.name, "it is " + actual + ", expected " + describe_expected(tensor),
                            "convert it: x.astype('" + wanted + "')");
}

void check_named_dim(const Signature& signature, const std::string& tensor, const std::string& name, std::int64_t size,
                     Sizes& sizes) {
    const auto entry = signature.dims.find(name);
    const DimLimits limits = entry == signature.dims.end() ? DimLimits{0, std::nullopt} : entry->second;
    if (size < limits.min || (limits.max && size > *limits.max)) {
        const std::string at_most = limits.max ? " and at most " + std::to_string(*limits.max) : "";
        throw data_does_not_fit(tensor, name + " is " + std::to_string(size) + ", and must be at least " +
                                            std::to_string(limits.min) + at_most);
    }
    const std::int64_t seen = sizes.try_emplace(name, size).first->second;
    if (seen != size) {
        throw data_does_not_fit(tensor, name + " is " + std::to_string(size) + " here and " + std::to_string(seen) +
                                            " in a different input");
    }
}

}  // namespace

Arrays check_inputs(const Signature& signature, const Arrays& arrays) {
    if (arrays.size() != signature.inputs.size()) throw explain_names(signature, arrays);
    Arrays checked;
    Sizes sizes;
    for (const TensorSpec& tensor : signature.inputs) {
        const Array* array = find(arrays, tensor.name);
        if (array == nullptr) throw explain_names(signature, arrays);
        check_dtype(tensor, *array);
        check_shape(signature, tensor, array->shape, sizes);
        checked.emplace_back(tensor.name, *array);
    }
    return checked;
}

void check_shape(const Signature& signature, const TensorSpec& tensor, const Shape& shape, Sizes& sizes) {
    if (shape.size() != tensor.shape.size()) {
        throw data_does_not_fit(tensor.name,
                                "it has the shape " + describe(shape) + ", expected " + describe_dims(tensor));
    }
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        const Dim& dim = tensor.shape[axis];
        if (const auto* fixed = std::get_if<std::int64_t>(&dim); fixed != nullptr && *fixed != shape[axis]) {
            throw data_does_not_fit(tensor.name, "its shape must be " + describe_dims(tensor) + "; it is " +
                                                     describe(shape) + ", and axis " + std::to_string(axis) +
                                                     " must be " + std::to_string(*fixed));
        }
        if (const auto* name = std::get_if<std::string>(&dim)) {
            check_named_dim(signature, tensor.name, *name, shape[axis], sizes);
        }
    }
}

std::string describe_expected(const TensorSpec& tensor) {
    return std::string(name_of(tensor.passed_dtype())) + describe_dims(tensor);
}

}  // namespace packager
