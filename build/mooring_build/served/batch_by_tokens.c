/* Batching strategy of an engine: a batch takes requests as long as their tokens together stay within
 * `parameters.max_batch_tokens` of the model's config. A request that has more by itself runs alone.
 *
 * Triton loads it as `batchstrategy.so` of a version folder and calls it from the model's dynamic batcher,
 * which goes on bounding batches by max_batch_size. The config has to prefer every batch size and delay
 * nothing: otherwise a batch that is formed already grows while it waits for an instance, and what it holds is
 * not asked about again. The functions and their order of calls are those of
 * "Custom Batching" in docs/user_guide/batcher.md and of include/triton/core/tritonbackend.h, both of
 * triton-inference-server; declared here, as no package of headers is at hand where models are built.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct TRITONSERVER_Error TRITONSERVER_Error;
typedef struct TRITONSERVER_Message TRITONSERVER_Message;
typedef struct TRITONBACKEND_Input TRITONBACKEND_Input;
typedef struct TRITONBACKEND_Model TRITONBACKEND_Model;
typedef struct TRITONBACKEND_Request TRITONBACKEND_Request;
typedef struct TRITONBACKEND_Batcher TRITONBACKEND_Batcher;

enum { TRITONSERVER_ERROR_INTERNAL = 1, TRITONSERVER_ERROR_INVALID_ARG = 3 };

TRITONSERVER_Error *TRITONSERVER_ErrorNew(int code, const char *text);
TRITONSERVER_Error *TRITONSERVER_MessageDelete(TRITONSERVER_Message *message);
TRITONSERVER_Error *TRITONSERVER_MessageSerializeToJson(
    TRITONSERVER_Message *message, const char **text, size_t *size);
TRITONSERVER_Error *TRITONBACKEND_ModelConfig(
    TRITONBACKEND_Model *model, uint32_t config_version, TRITONSERVER_Message **config);
TRITONSERVER_Error *TRITONBACKEND_RequestInputByIndex(
    TRITONBACKEND_Request *request, uint32_t index, TRITONBACKEND_Input **input);
TRITONSERVER_Error *TRITONBACKEND_InputProperties(
    TRITONBACKEND_Input *input, const char **name, int *data_type, const int64_t **shape,
    uint32_t *dims_count, uint64_t *byte_size, uint32_t *buffer_count);

/* What a model's batcher keeps. One thread forms its batches, one after another. */
struct TRITONBACKEND_Batcher {
  uint64_t max_tokens;
  /* Of the batch that is formed. */
  uint64_t tokens;
};

/* The digits after `"max_batch_tokens":{"string_value":"`; 0 where there are none. Without the name there is no
 * limit: a config belongs to all versions of a model, and this one may be older than the config. */
static uint64_t
read_limit(const char *config, size_t size)
{
  static const char name[] = "\"max_batch_tokens\"";
  static const char key[] = "\"max_batch_tokens\":{\"string_value\":\"";
  const size_t length = sizeof(key) - 1;
  for (size_t at = 0; at + sizeof(name) <= size; ++at) {
    if (memcmp(config + at, name, sizeof(name) - 1) != 0) {
      continue;
    }
    if (at + length >= size || memcmp(config + at, key, length) != 0) {
      return 0;
    }
    uint64_t limit = 0;
    for (at += length; at < size && config[at] >= '0' && config[at] <= '9'; ++at) {
      limit = limit * 10 + (uint64_t)(config[at] - '0');
    }
    return limit;
  }
  return UINT64_MAX;
}

TRITONSERVER_Error *
TRITONBACKEND_ModelBatcherInitialize(TRITONBACKEND_Batcher **batcher, TRITONBACKEND_Model *model)
{
  TRITONSERVER_Message *config = NULL;
  const char *text = NULL;
  size_t size = 0;
  uint64_t limit = 0;
  TRITONSERVER_Error *error = TRITONBACKEND_ModelConfig(model, 1, &config);
  if (error != NULL) {
    return error;
  }
  error = TRITONSERVER_MessageSerializeToJson(config, &text, &size);
  if (error == NULL) {
    limit = read_limit(text, size);
  }
  TRITONSERVER_MessageDelete(config);
  if (error != NULL) {
    return error;
  }
  if (limit == 0) {
    return TRITONSERVER_ErrorNew(
        TRITONSERVER_ERROR_INVALID_ARG,
        "batchstrategy.so: parameters.max_batch_tokens must be a number above 0");
  }
  *batcher = calloc(1, sizeof(TRITONBACKEND_Batcher));
  if (*batcher == NULL) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, "batchstrategy.so: out of memory");
  }
  (*batcher)->max_tokens = limit;
  return NULL;
}

TRITONSERVER_Error *
TRITONBACKEND_ModelBatcherFinalize(TRITONBACKEND_Batcher *batcher)
{
  free(batcher);
  return NULL;
}

TRITONSERVER_Error *
TRITONBACKEND_ModelBatchInitialize(const TRITONBACKEND_Batcher *batcher, void **userp)
{
  TRITONBACKEND_Batcher *own = (TRITONBACKEND_Batcher *)batcher;
  own->tokens = 0;
  *userp = own;
  return NULL;
}

TRITONSERVER_Error *
TRITONBACKEND_ModelBatchFinalize(void *userp)
{
  (void)userp;
  return NULL;
}

TRITONSERVER_Error *
TRITONBACKEND_ModelBatchIncludeRequest(TRITONBACKEND_Request *request, void *userp, bool *should_include)
{
  TRITONBACKEND_Batcher *batcher = userp;
  TRITONBACKEND_Input *input = NULL;
  const int64_t *shape = NULL;
  uint32_t dims_count = 0;
  *should_include = false;
  TRITONSERVER_Error *error = TRITONBACKEND_RequestInputByIndex(request, 0, &input);
  if (error == NULL) {
    error = TRITONBACKEND_InputProperties(input, NULL, NULL, &shape, &dims_count, NULL, NULL);
  }
  if (error != NULL) {
    return error;
  }
  /* Token ids and mask have one shape; padding that a request brings along counts. */
  uint64_t tokens = 1;
  for (uint32_t axis = 0; axis < dims_count; ++axis) {
    tokens *= (uint64_t)shape[axis];
  }
  *should_include = batcher->tokens == 0 || batcher->tokens + tokens <= batcher->max_tokens;
  if (*should_include) {
    batcher->tokens += tokens;
  }
  return NULL;
}
