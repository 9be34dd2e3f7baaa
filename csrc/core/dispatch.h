// The op of a schema, typed as the function that calls it.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace deepclust {

template <class Function>
c10::TypedOperatorHandle<Function> find_op(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Function>();
}

}  // namespace deepclust
