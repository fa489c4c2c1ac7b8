package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/hashicorp/raft"
)

// bodySizeMax is above the largest single command a test sends.
const bodySizeMax = 256 << 20

// answer is what an admin call says: an object for JSON, or an error (see fail).
type answer func(r *http.Request) (any, error)

func (n *node) addAdmin(mux *http.ServeMux) {
	for path, call := range map[string]answer{
		"GET /stats":         n.getStats,
		"GET /configuration": n.getConfiguration,
		"GET /log":           n.getLog,
		"GET /ids":           n.getIDs,
		"POST /apply":        n.postApply,
		"POST /applies":      n.postApplies,
		"POST /barrier":      n.postBarrier,
		"POST /verify":       n.postVerify,
		"POST /bench":        n.postBench,
		"POST /dials":        n.postDials,
		"POST /snapshot":     n.postSnapshot,
		"POST /transfer":     n.postTransfer,
		"POST /addvoter":     n.postAddVoter,
		"POST /addnonvoter":  n.postAddNonvoter,
		"POST /demote":       n.postDemote,
		"POST /remove":       n.postRemove,
		"POST /join":         n.postJoin,
		"POST /leave":        n.postLeave,
	} {
		var method, route string
		fmt.Sscanf(path, "%s %s", &method, &route)
		mux.HandleFunc(route, serve(method, call))
	}
}

func serve(method string, call answer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != method {
			http.Error(w, "use "+method, http.StatusMethodNotAllowed)
			return
		}
		value, err := call(r)
		code := http.StatusOK
		if err != nil {
			code, value = http.StatusConflict, fail(err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(value)
	}
}

// failure is the body of every 409.
type failure struct {
	Error   string `json:"error"`
	Outcome string `json:"outcome"` // "definite": nothing was done and will be; or "unknown"
}

func fail(err error) failure {
	outcome := "unknown"
	for _, definite := range []error{
		raft.ErrNotLeader, raft.ErrEnqueueTimeout, raft.ErrLeadershipTransferInProgress, errBadRequest,
		errSessionFormat, errSessionExpired, errRequestReused, errOverloaded,
	} {
		if errors.Is(err, definite) {
			outcome = "definite"
		}
	}
	return failure{err.Error(), outcome}
}

var errBadRequest = errors.New("bad request")

// number reads a query parameter; a missing one is `absent`.
func number(r *http.Request, name string, absent uint64) (uint64, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return absent, nil
	}
	value, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %s is %q", errBadRequest, name, text)
	}
	return value, nil
}

// seconds reads a query parameter as a duration.
func seconds(r *http.Request, name string, absent time.Duration) (time.Duration, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return absent, nil
	}
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %s is %q", errBadRequest, name, text)
	}
	return time.Duration(value * float64(time.Second)), nil
}

func body(r *http.Request) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r.Body, bodySizeMax+1))
	if err == nil && len(data) > bodySizeMax {
		err = fmt.Errorf("%w: the body is too large", errBadRequest)
	}
	return data, err
}
