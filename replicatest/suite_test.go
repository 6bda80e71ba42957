package replicatest_test

import (
	"testing"

	"example.com/litestream"
	"example.com/litestream/replicatest"
)

func TestMemClient(t *testing.T) {
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
