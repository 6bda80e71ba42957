package replicatest_test

import (
	"bytes"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"example.com/litestream"
	"example.com/litestream/replicatest"
)

func TestMemClient_KeepsEveryPromise(t *testing.T) {
	replicatest.TestStorage(t, func(testing.TB) func() litestream.ReplicaClient {
		c := replicatest.NewMemClient()
		return func() litestream.ReplicaClient { return c }
	})
}

func TestFaultClient_WithoutPlansKeepsEveryPromise(t *testing.T) {
	replicatest.TestClient(t, func(testing.TB) litestream.ReplicaClient {
		return replicatest.NewFaultClient(replicatest.NewMemClient())
	})
}

// brokenEnv, if set, makes TestBrokenClients do what it says, and fail.
const brokenEnv = "REPLICATEST_BROKEN_CLIENTS"

// TestBrokenClients runs the suite on broken clients. It has to fail, which
// TestSuite_FindsWhatIsBroken sees from outside.
func TestBrokenClients(t *testing.T) {
	if os.Getenv(brokenEnv) == "" {
		t.Skip("runs in a child process of TestSuite_FindsWhatIsBroken, where it must fail")
	}
	for _, b := range brokenClients {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			replicatest.TestStorage(t, func(testing.TB) func() litestream.ReplicaClient {
				mem := replicatest.NewMemClient()
				return func() litestream.ReplicaClient {
					c := &hooked{MemClient: mem}
					b.spoil(c)
					return c
				}
			})
		})
	}
}

// Each broken promise is found by the subtest that is named after it.
func TestSuite_FindsWhatIsBroken(t *testing.T) {
	if raceEnabled {
		t.Skip("some of the broken clients race on purpose, and the race detector fails more subtests than the suite")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestBrokenClients$", "-test.v", "-test.short", "-test.parallel=8", "-test.timeout=10m")
	cmd.Env = append(os.Environ(), brokenEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Error("the suite passes")
	}
	// --- FAIL: TestBrokenClients/NAME/SUBTEST (0.00s)
	failed := map[string][]string{}
	for line := range bytes.Lines(out) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "--- FAIL: TestBrokenClients/")
		name, subtest, _ := strings.Cut(rest, "/")
		subtest, _, _ = strings.Cut(subtest, " ")
		if ok && subtest != "" {
			name = strings.ReplaceAll(name, "_", " ")
			failed[name] = append(failed[name], subtest)
		}
	}
	for _, b := range brokenClients {
		t.Logf("%s: %q", b.name, failed[b.name])
		wrong := ""
		switch {
		case b.fails == "" && len(failed[b.name]) > 0:
			wrong = "is not broken"
		case b.fails != "" && !slices.Contains(failed[b.name], b.fails):
			wrong = "passes " + b.fails
		case b.alone && len(failed[b.name]) > 1:
			wrong = "fails not only " + b.fails
		}
		if wrong != "" {
			t.Errorf("%s %s; it fails %q", b.name, wrong, failed[b.name])
			t.Logf("its output:\n%s", outputOf(out, b.name))
		}
	}
}

// outputOf returns the lines of the child's output that belong to one client.
func outputOf(out []byte, name string) []byte {
	var of []byte
	mine, prefix := false, "TestBrokenClients/"+strings.ReplaceAll(name, " ", "_")+"/"
	for line := range bytes.Lines(out) {
		if _, test, ok := strings.Cut(string(line), "TestBrokenClients/"); ok {
			mine = strings.HasPrefix("TestBrokenClients/"+test, prefix)
		}
		if mine && !bytes.HasPrefix(line, []byte("===")) {
			of = append(of, line...)
		}
	}
	return of
}
