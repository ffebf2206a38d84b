/* mask_help.h - what the suites of masks make masks with. */
#ifndef HRA_TESTS_MASK_HELP_H
#define HRA_TESTS_MASK_HELP_H

#include "src/mask.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdlib.h>
#include <string.h>

static inline hra_order *order_of(const hra_domain *d, const char *name)
{
    hra_order *o = NULL;

    cr_assert(eq(int, hra_order_create(&o, d, name), HRA_OK), "%s: %s", name, hra_last_error());
    return o;
}

static inline hra_mask *parse(const hra_domain *d, const hra_order *order, const char *text)
{
    hra_mask *m = NULL;

    cr_assert(eq(int, hra_mask_parse(&m, d, order, text), HRA_OK), "%s: %s", text, hra_last_error());
    return m;
}

static inline char *print(const hra_mask *m)
{
    const size_t bytes = hra_mask_print(m, NULL, 0);
    char *text = malloc(bytes + 1);

    cr_assert(hra_mask_print(m, text, bytes + 1) == bytes && strlen(text) == bytes);
    return text;
}

#endif
