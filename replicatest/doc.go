// Package replicatest helps people who write a [litestream.ReplicaClient], and
// people who test a program that uses one.
//
// # A client of your own
//
// [TestClient] checks that a client keeps every promise of the interface.
// [TestStorage] does the same, and also that what one client stores is seen by
// another client of the same storage: use it wherever the storage can be opened
// more than once.
//
//	func TestConformance(t *testing.T) {
//		replicatest.TestStorage(t, func(t testing.TB) func() litestream.ReplicaClient {
//			bucket := newBucket(t) // empty, and deleted by a t.Cleanup
//			return func() litestream.ReplicaClient { return mystore.New(bucket) }
//		})
//	}
//
// Each subtest is named after what it checks, such as
// Snapshot/FailedWriteLeavesNoPart, and runs on a new, empty storage. With
// go test -short the bodies and listings are smaller.
//
// # Programs under test
//
// [MemClient] keeps a replica in memory. [FaultClient] stands before any other
// client and makes it misbehave: on the nth call, by a rule of your own, or at
// random from a seed.
package replicatest
