// The entry of an op in the extension module. The arguments' names and defaults are those of the op's schema, and types
// are those of the C++ function, which the dispatcher compares with the schema.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <type_traits>
#include <vector>

namespace deepclust {

// What an entry takes for an argument of the op: a list is made anew, and the op refers to it.
template <class T>
struct Taken {
  using Type = T;
};

template <class T>
struct Taken<at::ArrayRef<T>> {
  using Type = const std::vector<T>&;
};

template <class T>
struct Taken<std::optional<at::ArrayRef<T>>> {
  using Type = const std::optional<std::vector<T>>&;
};

inline pybind11::object python_default(const c10::Argument& argument) {
  const c10::IValue& value = *argument.default_value();
  if (value.isNone()) return pybind11::none();
  if (argument.real_type()->kind() == c10::TypeKind::ScalarTypeType) return pybind11::cast(value.toScalarType());
  if (value.isBool()) return pybind11::bool_(value.toBool());
  if (value.isInt()) return pybind11::int_(value.toInt());
  if (value.isDouble()) return pybind11::float_(value.toDouble());
  TORCH_CHECK(value.isString(), argument.name(), ": expected a default that is a dtype, bool, int, float or str, got ",
              value.tagKind());
  return pybind11::str(value.toStringRef());
}

// For pybind11::module_::def, in place of a pybind11::arg for each argument.
struct SchemaArguments {
  const c10::FunctionSchema& schema;
};

template <auto* kOp, class Result, class... Arguments>
void define_entry(pybind11::module_& m, const char* name, Result (*)(Arguments...)) {
  const c10::FunctionSchema& schema =
      c10::Dispatcher::singleton().findSchemaOrThrow((std::string("deepclust_ext::") + name).c_str(), "").schema();
  TORCH_CHECK(schema.arguments().size() == sizeof...(Arguments), name, ": expected ", schema.arguments().size(),
              " arguments as in the schema, got a function of ", sizeof...(Arguments));
  m.def(
      name, [](typename Taken<Arguments>::Type... arguments) -> Result { return kOp(arguments...); },
      SchemaArguments{schema});
}

}  // namespace deepclust

namespace pybind11::detail {

template <>
struct process_attribute<deepclust::SchemaArguments> : process_attribute_default<deepclust::SchemaArguments> {
  static void init(const deepclust::SchemaArguments& attribute, function_record* record) {
    for (const c10::Argument& argument : attribute.schema.arguments()) {
      const object value = argument.default_value() ? deepclust::python_default(argument) : object();
      record->args.emplace_back(argument.name().c_str(), nullptr, value.inc_ref(), /*convert=*/true, /*none=*/true);
    }
  }
};

}  // namespace pybind11::detail

// Within PYBIND11_MODULE(_C, m).
#define DEEPCLUST_ENTRY(op) deepclust::define_entry<deepclust::op>(m, #op, deepclust::op)
