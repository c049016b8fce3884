/**
 * Beam's Flink job server without jars to send: Beam sends what is on the class path, as this property tells it.
 *
 * Java compiles this file when it starts. The property `staged` names an empty jar, because Flink wants one at least.
 */
public class JobServer {
    public static void main(String[] arguments) throws Exception {
        System.setProperty("java.class.path", System.getProperty("staged"));
        org.apache.beam.runners.flink.FlinkJobServerDriver.main(arguments);
    }
}
