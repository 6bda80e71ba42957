package fileclient_test

import (
	"path/filepath"
	"testing"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	"example.com/litestream/replicatest"
)

func TestFileReplicaClient_KeepsEveryPromise(t *testing.T) {
	replicatest.TestStorage(t, func(t testing.TB) func() litestream.ReplicaClient {
		dir := filepath.Join(t.TempDir(), "a", "replica")
		return func() litestream.ReplicaClient { return fileclient.NewFileReplicaClient(dir) }
	})
}
