/* One step of many quadrotors, and the beginning of their episodes: what `fused.fly` and `state.initial_state` do.

   Matrices are feature-major, (rows, n): every quantity of all vehicles lies in one stretch of memory. Vehicles are
   taken LANES at a time, so that the compiler turns every loop over `i` into vector instructions. The file includes
   itself once for each floating-point type and instruction set; which of them runs is decided at run time. */

#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define LANES 16

enum { POSITION = 0, QUATERNION = 3, VELOCITY = 7, OMEGA = 10, RPM = 13, MOTION = 17, DISTURBANCE = 6 };
enum { POSE = 18, PRIVILEGED = 28, ACTION = 4 };

/* Rows of the parameters, see `native._packed_params`. */
enum {
    MIXING = 0, THRUST = 24, INVERSE_MASS = 27, GRAVITY = 28, INERTIA = 31, INVERSE_INERTIA = 34,
    RISING = 37, FALLING = 38, RPM_MIN = 39, RPM_MAX = 40, PARAMS = 41
};

/* Rows of the reward's weights: the fields of `RewardWeights`. */
enum {
    W_POSITION, W_ORIENTATION, W_VELOCITY, W_OMEGA, W_ACCELERATION, W_ANGULAR_ACCELERATION, W_ACTION, W_BASELINE,
    W_SCALE, W_CONSTANT, WEIGHTS
};

enum { UNCHECKED, NOT_NAN, STRICT };

/* Mirrored by `native._Flight`. Without `observation` the state alone is advanced. */
struct flight {
    int64_t n, history, params_width, weights_width, euler, received_is_rpm, check, max_steps;
    double dt, max_distance, noise[4];
    const void *motion, *disturbance, *action, *received, *params;
    void *next_motion, *slot;
    const void *weights, *normal, *window;
    const int64_t *steps;
    void *observation, *privileged, *reward;
    int64_t *next_steps, *ended;
    uint8_t *terminated, *truncated;
};

/* Mirrored by `native._Beginning`. */
struct beginning {
    int64_t n, count, history, params_width;
    double noise[4], guidance, max_position, max_angle, max_velocity, max_omega, action, force_std, torque_std;
    const void *uniform, *normal, *observation_normal, *params;
    const int64_t *vehicles;
    void *motion, *disturbance, *window, *observation, *privileged;
    int64_t *steps;
};

/* Solves angle - sin(angle) = uniform (most - sin(most)) by Newton's method. */
static double rotation_angle(double uniform, double most) {
    const double share = uniform * (most - sin(most));
    double angle = cbrt(6 * share);
    for (int round = 0; round < 5; round++) {
        const double slope = 1 - cos(angle);
        angle -= (angle - sin(angle) - share) / (slope < 1e-12 ? 1e-12 : slope);
    }
    return angle;
}

#define JOIN_(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define NAME(name) JOIN(name, TYPE, SET)

#define BEGINNING
#define SET plain
#define TARGET
#define REAL float
#define TYPE float32
#include "native.c"
#undef REAL
#undef TYPE
#define REAL double
#define TYPE float64
#include "native.c"
#undef REAL
#undef TYPE
#undef SET
#undef TARGET

#undef BEGINNING

#if defined(__x86_64__) && defined(__GNUC__)
#define SEVERAL_SETS
#define SET avx2
#define TARGET __attribute__((target("avx2,fma")))
#define REAL float
#define TYPE float32
#include "native.c"
#undef REAL
#undef TYPE
#define REAL double
#define TYPE float64
#include "native.c"
#undef REAL
#undef TYPE
#undef SET
#undef TARGET
#define SET avx512
#define TARGET __attribute__((target(AVX512)))
#ifdef __clang__
#define AVX512 "avx2,fma,avx512f,avx512dq,avx512vl,avx512bw"
#else
#define AVX512 "avx2,fma,avx512f,avx512dq,avx512vl,avx512bw,prefer-vector-width=512"
#endif
#define REAL float
#define TYPE float32
#include "native.c"
#undef REAL
#undef TYPE
#define REAL double
#define TYPE float64
#include "native.c"
#undef REAL
#undef TYPE
#undef SET
#undef TARGET
#endif

#ifdef SEVERAL_SETS
#define CHOOSE(name, type, argument)                                                       \
    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")               \
            && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma")         \
        ? name##_##type##_avx512(argument)                                                 \
        : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")                  \
            ? name##_##type##_avx2(argument)                                               \
            : name##_##type##_plain(argument)
#else
#define CHOOSE(name, type, argument) name##_##type##_plain(argument)
#endif

/* How many episodes have ended, or -1 for an action that is NaN and -2 for one outside [-1, 1], if that is checked. */
EXPORT int64_t fly_float32(const struct flight *f) { return CHOOSE(fly, float32, f); }
EXPORT int64_t fly_float64(const struct flight *f) { return CHOOSE(fly, float64, f); }
EXPORT void begin_float32(const struct beginning *b) { begin_float32_plain(b); }
EXPORT void begin_float64(const struct beginning *b) { begin_float64_plain(b); }
EXPORT uint32_t source_checksum(void) { return CHECKSUM; }

#else /* for one type and instruction set */

#define lanes NAME(lanes)
typedef REAL lanes[LANES];

TARGET static inline void NAME(load)(REAL *to, const REAL *from, int64_t count) {
    if (count == LANES) {
        memcpy(to, from, sizeof(lanes));
        return;
    }
    for (int i = 0; i < LANES; i++) to[i] = from[i < count ? i : 0];
}

TARGET static inline void NAME(store)(REAL *to, const REAL *from, int64_t count) {
    if (count == LANES)
        memcpy(to, from, sizeof(lanes));
    else
        memcpy(to, from, count * sizeof(REAL));
}

TARGET static inline void NAME(load_rows)(lanes *to, const void *from, int rows, int64_t width, int64_t start,
                                          int64_t count) {
    for (int j = 0; j < rows; j++) NAME(load)(to[j], (const REAL *)from + j * width + start, count);
}

/* (n, 4) to lanes */
TARGET static inline void NAME(load_actions)(lanes *to, const void *from, int64_t start, int64_t count) {
    const REAL *rows = (const REAL *)from + start * ACTION;
    if (count == LANES) {
        for (int i = 0; i < LANES; i++)
            for (int k = 0; k < ACTION; k++) to[k][i] = rows[i * ACTION + k];
        return;
    }
    for (int i = 0; i < LANES; i++)
        for (int k = 0; k < ACTION; k++) to[k][i] = rows[(i < count ? i : 0) * ACTION + k];
}

/* The equations of motion, as in `simulator._derivative`. */
TARGET static void NAME(derivative)(const lanes *restrict s, const lanes *restrict f, const lanes *restrict u,
                                    const lanes *restrict p, lanes *restrict d) {
    for (int i = 0; i < LANES; i++) {
        REAL thrust[4], wrench[6];
        for (int k = 0; k < 4; k++) {
            const REAL rpm = s[RPM + k][i], error = u[k][i] - rpm;
            thrust[k] = (p[THRUST + 2][i] * rpm + p[THRUST + 1][i]) * rpm + p[THRUST][i];
            d[RPM + k][i] = error * (error >= 0 ? p[RISING][i] : p[FALLING][i]);
        }
        for (int j = 0; j < 6; j++)
            wrench[j] = p[MIXING + 4 * j][i] * thrust[0] + p[MIXING + 4 * j + 1][i] * thrust[1]
                      + p[MIXING + 4 * j + 2][i] * thrust[2] + p[MIXING + 4 * j + 3][i] * thrust[3];
        const REAL w = s[3][i], x = s[4][i], y = s[5][i], z = s[6][i];
        const REAL a = s[OMEGA][i], b = s[OMEGA + 1][i], c = s[OMEGA + 2][i];
        /* R(q) F = F + w t + u x t, t = 2 u x F, for q = (w, u) */
        const REAL tx = 2 * (y * wrench[2] - z * wrench[1]);
        const REAL ty = 2 * (z * wrench[0] - x * wrench[2]);
        const REAL tz = 2 * (x * wrench[1] - y * wrench[0]);
        const REAL fx = wrench[0] + w * tx + (y * tz - z * ty) + f[0][i];
        const REAL fy = wrench[1] + w * ty + (z * tx - x * tz) + f[1][i];
        const REAL fz = wrench[2] + w * tz + (x * ty - y * tx) + f[2][i];
        const REAL ja = p[INERTIA][i] * a, jb = p[INERTIA + 1][i] * b, jc = p[INERTIA + 2][i] * c;
        for (int j = 0; j < 3; j++) d[POSITION + j][i] = s[VELOCITY + j][i];
        d[3][i] = (REAL)-0.5 * (x * a + y * b + z * c);
        d[4][i] = (REAL)0.5 * (w * a + (y * c - z * b));
        d[5][i] = (REAL)0.5 * (w * b + (z * a - x * c));
        d[6][i] = (REAL)0.5 * (w * c + (x * b - y * a));
        d[VELOCITY][i] = fx * p[INVERSE_MASS][i] + p[GRAVITY][i];
        d[VELOCITY + 1][i] = fy * p[INVERSE_MASS][i] + p[GRAVITY + 1][i];
        d[VELOCITY + 2][i] = fz * p[INVERSE_MASS][i] + p[GRAVITY + 2][i];
        d[OMEGA][i] = (wrench[3] - (b * jc - c * jb) + f[3][i]) * p[INVERSE_INERTIA][i];
        d[OMEGA + 1][i] = (wrench[4] - (c * ja - a * jc) + f[4][i]) * p[INVERSE_INERTIA + 1][i];
        d[OMEGA + 2][i] = (wrench[5] - (a * jb - b * ja) + f[5][i]) * p[INVERSE_INERTIA + 2][i];
    }
}

/* The classical Runge-Kutta step, or Euler's. */
TARGET static void NAME(integrate)(lanes *restrict s, const lanes *f, const lanes *u, const lanes *p, REAL dt,
                                   int64_t euler) {
    lanes k[MOTION], sum[MOTION], m[MOTION];
    NAME(derivative)(s, f, u, p, k);
    if (euler) {
        for (int j = 0; j < MOTION; j++)
            for (int i = 0; i < LANES; i++) s[j][i] += dt * k[j][i];
        return;
    }
    memcpy(sum, k, sizeof(sum));
    for (int stage = 1; stage < 4; stage++) {
        const REAL h = stage == 3 ? dt : dt / 2, share = stage == 3 ? 1 : 2;
        for (int j = 0; j < MOTION; j++)
            for (int i = 0; i < LANES; i++) m[j][i] = s[j][i] + h * k[j][i];
        NAME(derivative)(m, f, u, p, k);
        for (int j = 0; j < MOTION; j++)
            for (int i = 0; i < LANES; i++) sum[j][i] += share * k[j][i];
    }
    for (int j = 0; j < MOTION; j++)
        for (int i = 0; i < LANES; i++) s[j][i] += dt / 6 * sum[j][i];
}

/* A NaN remains what it is. */
TARGET static inline REAL NAME(between)(REAL x, REAL low, REAL high) { return x < low ? low : x > high ? high : x; }

TARGET static void NAME(limit)(lanes *restrict s, const lanes *restrict p) {
    for (int i = 0; i < LANES; i++) {
        REAL norm = 0;
        for (int j = QUATERNION; j < VELOCITY; j++) norm += s[j][i] * s[j][i];
        const REAL scale = 1 / (sizeof(REAL) == 4 ? (REAL)sqrtf((float)norm) : (REAL)sqrt(norm));
        for (int j = QUATERNION; j < VELOCITY; j++) s[j][i] *= scale;
        for (int j = RPM; j < MOTION; j++) s[j][i] = NAME(between)(s[j][i], p[RPM_MIN][i], p[RPM_MAX][i]);
    }
}

/* Position, rotation matrix row by row, velocity, angular velocity. */
TARGET static void NAME(look)(const lanes *restrict s, lanes *restrict pose) {
    for (int i = 0; i < LANES; i++) {
        const REAL w = s[3][i], x = s[4][i], y = s[5][i], z = s[6][i];
        const REAL wx = 2 * w * x, wy = 2 * w * y, wz = 2 * w * z, xx = 2 * x * x, xy = 2 * x * y;
        const REAL xz = 2 * x * z, yy = 2 * y * y, yz = 2 * y * z, zz = 2 * z * z;
        for (int j = 0; j < 3; j++) {
            pose[j][i] = s[POSITION + j][i];
            pose[12 + j][i] = s[VELOCITY + j][i];
            pose[15 + j][i] = s[OMEGA + j][i];
        }
        pose[3][i] = 1 - yy - zz; pose[4][i] = xy - wz; pose[5][i] = xz + wy;
        pose[6][i] = xy + wz; pose[7][i] = 1 - xx - zz; pose[8][i] = yz - wx;
        pose[9][i] = xz - wy; pose[10][i] = yz + wx; pose[11][i] = 1 - xx - yy;
    }
}

static inline REAL NAME(noise)(const double *noise, int row) {
    return (REAL)noise[row < 3 ? 0 : row < 12 ? 1 : row < 15 ? 2 : 3];
}

/* As `rewards._reward`, but for those that terminate. */
TARGET static void NAME(gain)(const lanes *restrict s, const lanes *restrict next, const lanes *restrict action,
                              const lanes *restrict w, REAL dt, REAL *restrict reward) {
    for (int i = 0; i < LANES; i++) {
        REAL place = 0, speed = 0, turn = 0, pull = 0, twist = 0, effort = 0;
        for (int j = 0; j < 3; j++) {
            const REAL v = s[VELOCITY + j][i], o = s[OMEGA + j][i];
            const REAL dv = (next[VELOCITY + j][i] - v) / dt, d_omega = (next[OMEGA + j][i] - o) / dt;
            place += s[POSITION + j][i] * s[POSITION + j][i];
            speed += v * v;
            turn += o * o;
            pull += dv * dv;
            twist += d_omega * d_omega;
        }
        for (int k = 0; k < ACTION; k++) {
            const REAL off = action[k][i] - w[W_BASELINE][i];
            effort += off * off;
        }
        REAL cost = w[W_POSITION][i] * place + w[W_ORIENTATION][i] * (1 - s[QUATERNION][i] * s[QUATERNION][i]);
        cost += w[W_VELOCITY][i] * speed + w[W_ACTION][i] * effort;
        cost += w[W_OMEGA][i] != 0 ? w[W_OMEGA][i] * turn : 0;
        cost += w[W_ACCELERATION][i] != 0 ? w[W_ACCELERATION][i] * pull : 0;
        cost += w[W_ANGULAR_ACCELERATION][i] != 0 ? w[W_ANGULAR_ACCELERATION][i] * twist : 0;
        reward[i] = w[W_CONSTANT][i] - w[W_SCALE][i] * cost;
    }
}

/* What the actor and the critic see, the reward, and whose episode ends; gives how many of them. */
TARGET static int64_t NAME(judge)(const struct flight *f, const lanes *before, const lanes *s, const lanes *wrench,
                                  const lanes *action, const lanes *p, const lanes *w, int64_t start, int64_t count,
                                  int64_t already) {
    lanes pose[POSE], row, reward;
    REAL *observation = f->observation, *privileged = f->privileged;
    NAME(look)(s, pose);
    for (int j = 0; j < POSE; j++) {
        NAME(store)(privileged + j * f->n + start, pose[j], count);
        if (f->normal) {
            const REAL scale = NAME(noise)(f->noise, j);
            NAME(load)(row, (const REAL *)f->normal + j * f->n + start, count);
            for (int i = 0; i < LANES; i++) row[i] = pose[j][i] + scale * row[i];
        }
        NAME(store)(observation + j * f->n + start, f->normal ? row : pose[j], count);
    }
    privileged += POSE * f->n + start;
    for (int j = 0; j < DISTURBANCE; j++) NAME(store)(privileged + j * f->n, wrench[j], count);
    privileged += DISTURBANCE * f->n;
    for (int k = 0; k < ACTION; k++) {
        for (int i = 0; i < LANES; i++)
            row[i] = 2 * (s[RPM + k][i] - p[RPM_MIN][i]) / (p[RPM_MAX][i] - p[RPM_MIN][i]) - 1;
        NAME(store)(privileged + k * f->n, row, count);
    }
    NAME(gain)(before, s, action, w, (REAL)f->dt, reward);
    const REAL bound = (REAL)f->max_distance;
    for (int i = 0; i < count; i++) {
        int inside = 1;
        for (int j = 0; j < 3; j++) inside &= s[POSITION + j][i] <= bound && s[POSITION + j][i] >= -bound;
        const int64_t vehicle = start + i, steps = f->steps[vehicle] + 1;
        const int late = inside && f->max_steps >= 0 && steps >= f->max_steps;
        f->next_steps[vehicle] = steps;
        f->terminated[vehicle] = (uint8_t)!inside;
        f->truncated[vehicle] = (uint8_t)late;
        ((REAL *)f->reward)[vehicle] = inside ? reward[i] : 0;
        if (!inside || late) f->ended[already++] = vehicle;
    }
    return already;
}

TARGET static int64_t NAME(refused)(const struct flight *f) {
    const REAL *action = f->action;
    int undefined = 0, outside = 0;
    if (f->check == UNCHECKED) return 0;
    for (int64_t i = 0; i < f->n * ACTION; i++) {
        undefined |= action[i] != action[i];
        outside |= !(action[i] >= -1 && action[i] <= 1);
    }
    return f->check == STRICT && outside ? -2 : undefined ? -1 : 0;
}

TARGET static int64_t NAME(fly)(const struct flight *f) {
    const int64_t refused = NAME(refused)(f), n = f->n;
    lanes p[PARAMS], w[WEIGHTS], before[MOTION], s[MOTION], wrench[DISTURBANCE], action[ACTION], u[ACTION];
    int64_t ended = 0;
    if (refused) return refused;
    if (f->params_width == 1)
        for (int j = 0; j < PARAMS; j++)
            for (int i = 0; i < LANES; i++) p[j][i] = ((const REAL *)f->params)[j];
    if (f->observation && f->weights_width == 1)
        for (int j = 0; j < WEIGHTS; j++)
            for (int i = 0; i < LANES; i++) w[j][i] = ((const REAL *)f->weights)[j];
    for (int64_t start = 0; start < n; start += LANES) {
        const int64_t count = n - start < LANES ? n - start : LANES;
        if (f->params_width > 1) NAME(load_rows)(p, f->params, PARAMS, f->params_width, start, count);
        NAME(load_rows)(before, f->motion, MOTION, n, start, count);
        NAME(load_rows)(wrench, f->disturbance, DISTURBANCE, n, start, count);
        NAME(load_actions)(action, f->action, start, count);
        NAME(load_actions)(u, f->received, start, count);
        if (!f->received_is_rpm)
            for (int k = 0; k < ACTION; k++)
                for (int i = 0; i < LANES; i++)
                    u[k][i] = p[RPM_MIN][i]
                            + (NAME(between)(u[k][i], -1, 1) + 1) / 2 * (p[RPM_MAX][i] - p[RPM_MIN][i]);
        memcpy(s, before, sizeof(s));
        NAME(integrate)(s, wrench, u, p, (REAL)f->dt, f->euler);
        NAME(limit)(s, p);
        for (int j = 0; j < MOTION; j++) NAME(store)((REAL *)f->next_motion + j * n + start, s[j], count);
        if (f->slot)
            for (int k = 0; k < ACTION; k++) NAME(store)((REAL *)f->slot + k * n + start, action[k], count);
        if (f->observation) {
            if (f->weights_width > 1) NAME(load_rows)(w, f->weights, WEIGHTS, f->weights_width, start, count);
            ended = NAME(judge)(f, before, s, wrench, action, p, w, start, count, ended);
        }
    }
    if (f->observation && f->history)
        memcpy((REAL *)f->observation + POSE * n, f->window, sizeof(REAL) * f->history * ACTION * n);
    return ended;
}

#ifdef BEGINNING

/* `state.initial_state` for the vehicles that begin anew, in place of their columns. */
static void NAME(begin)(const struct beginning *b) {
    const int64_t n = b->n, count = b->count;
    const REAL *uniform = b->uniform, *normal = b->normal;
    REAL *observation = b->observation, *privileged = b->privileged, *window = b->window;
    for (int64_t index = 0; index < count; index++) {
        const int64_t vehicle = b->vehicles[index];
        const int64_t column = b->params_width == 1 ? 0 : vehicle;
        const REAL *p = (const REAL *)b->params + column;
        REAL *motion = (REAL *)b->motion + vehicle, *wrench = (REAL *)b->disturbance + vehicle;
#define PARAM(row) p[(row) * b->params_width]
#define UNIFORM(row) uniform[(row) * count + index]
#define NORMAL(row) normal[(row) * count + index]
        const int guided = UNIFORM(0) < (REAL)b->guidance;
        const REAL half = (REAL)rotation_angle(UNIFORM(10), b->max_angle) / 2;
        REAL axis[3], length = 0, gravity = 0;
        for (int j = 0; j < 3; j++) {
            axis[j] = NORMAL(j);
            length += axis[j] * axis[j];
            gravity += PARAM(GRAVITY + j) * PARAM(GRAVITY + j);
        }
        const REAL sine = (REAL)(sin(half) / sqrt(length));
        motion[QUATERNION * n] = guided ? 1 : (REAL)cos(half);
        for (int j = 0; j < 3; j++) {
            motion[(POSITION + j) * n] = guided ? 0 : (REAL)b->max_position * (2 * UNIFORM(1 + j) - 1);
            motion[(QUATERNION + 1 + j) * n] = guided ? 0 : sine * axis[j];
            motion[(VELOCITY + j) * n] = (REAL)b->max_velocity * (2 * UNIFORM(4 + j) - 1);
            motion[(OMEGA + j) * n] = (REAL)b->max_omega * (2 * UNIFORM(7 + j) - 1);
        }
        for (int k = 0; k < ACTION; k++)
            motion[(RPM + k) * n] =
                PARAM(RPM_MIN) + (REAL)((b->action + 1) / 2) * (PARAM(RPM_MAX) - PARAM(RPM_MIN));
        const REAL weight = (REAL)sqrt(gravity) / PARAM(INVERSE_MASS);
        for (int j = 0; j < DISTURBANCE; j++)
            wrench[j * n] = (REAL)(j < 3 ? b->force_std : b->torque_std) * weight * NORMAL(3 + j);
        lanes s[MOTION], pose[POSE];
        for (int j = 0; j < MOTION; j++)
            for (int i = 0; i < LANES; i++) s[j][i] = motion[j * n];
        NAME(look)((const lanes *)s, pose);
        for (int j = 0; j < POSE; j++) {
            const REAL *noise = b->observation_normal;
            privileged[j * n + vehicle] = pose[j][0];
            observation[j * n + vehicle] =
                pose[j][0] + (noise ? NAME(noise)(b->noise, j) * noise[j * count + index] : 0);
        }
        for (int j = 0; j < DISTURBANCE; j++) privileged[(POSE + j) * n + vehicle] = wrench[j * n];
        for (int k = 0; k < ACTION; k++) {
            const REAL range = PARAM(RPM_MAX) - PARAM(RPM_MIN);
            privileged[(POSE + DISTURBANCE + k) * n + vehicle] = 2 * (motion[(RPM + k) * n] - PARAM(RPM_MIN)) / range - 1;
        }
        for (int64_t j = 0; j < b->history * ACTION; j++)
            window[j * n + vehicle] = observation[(POSE + j) * n + vehicle] = (REAL)b->action;
        b->steps[vehicle] = 0;
#undef PARAM
#undef UNIFORM
#undef NORMAL
    }
}

#endif
#undef lanes
#endif
